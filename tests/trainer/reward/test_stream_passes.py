import json
from types import SimpleNamespace

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from trl_rlp.data.preferences.collator import RECORD
from trl_rlp.trainer.reward.stream_passes import find_stream_position, number_stream


def build_stream(size=12, num_shards=1):
    return Dataset.from_dict({"row": list(range(size))}).to_iterable_dataset(num_shards=num_shards)


def build_accelerator(num_processes=1, process_index=0, split_batches=False, parallelism_config=None):
    return SimpleNamespace(
        num_processes=num_processes,
        process_index=process_index,
        split_batches=split_batches,
        parallelism_config=parallelism_config,
    )


def test_a_stream_is_numbered_again_in_each_pass():
    stream = number_stream(build_stream(), build_accelerator())
    for _ in range(2):
        assert [(row["row"], row[RECORD]) for row in stream] == [(i, i) for i in range(12)]


@pytest.mark.parametrize(("num_shards", "workers"), [(4, 2), (1, 2), (3, 4), (12, 1)])
def test_workers_share_the_numbers(num_shards, workers):
    stream = number_stream(build_stream(num_shards=num_shards), build_accelerator())
    loader = DataLoader(stream, batch_size=2, collate_fn=list, num_workers=workers)
    assert sorted(row[RECORD] for batch in loader for row in batch) == list(range(12))


def test_processes_that_read_own_shards_number_every_nth_row():
    numbers = []
    for process in range(3):
        stream = number_stream(build_stream(num_shards=3), build_accelerator(3, process))
        numbers.append([row[RECORD] for row in stream.shard(3, process)])
    assert numbers == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize(("num_shards", "split_batches"), [(1, False), (4, True)])
def test_processes_that_read_the_whole_stream_number_all_rows(num_shards, split_batches):
    stream = number_stream(build_stream(num_shards=num_shards), build_accelerator(2, 1, split_batches))
    assert [row[RECORD] for row in stream] == list(range(12))


def test_tensor_parallel_processes_have_the_same_numbers():
    """Of four processes, two pairs hold one copy of the model each, and both processes of a pair get one batch."""
    parallelism = SimpleNamespace(tp_size=2, cp_size=1)
    numbers = []
    for process in range(4):
        stream = number_stream(build_stream(num_shards=2), build_accelerator(4, process, False, parallelism))
        numbers.append([row[RECORD] for row in stream.shard(2, process // 2)])
    assert numbers[0] == numbers[1] == [0, 2, 4, 6, 8, 10]
    assert numbers[2] == numbers[3] == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("epoch", "accumulation", "position"), [(0.25, 1, (0, 5)), (2.1, 1, (2, 2)), (2.1, 4, (2, 8)), (1.0, 1, (1, 0))]
)
def test_the_position_is_read_from_the_epoch_of_a_checkpoint(epoch, accumulation, position, tmp_path):
    """Of a stream, `epoch` is the number of passes, and the share of the 20 steps that the next pass has taken."""
    state = {"epoch": epoch, "max_steps": 20, "global_step": 7}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    args = SimpleNamespace(gradient_accumulation_steps=accumulation, ignore_data_skip=False)
    assert find_stream_position(str(tmp_path), args) == position
    args.ignore_data_skip = True
    assert find_stream_position(str(tmp_path), args) == (position[0], 0)
