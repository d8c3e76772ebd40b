"""Passes over a stream of human pairs, separate from the trainer because a stream has no row numbers and no length."""

from typing import Any

from accelerate import Accelerator
from datasets import IterableDataset
from torch.utils.data import get_worker_info

from trl_rlp.data.preferences.collator import RECORD
from trl_rlp.trainer.checkpoints import load_state
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


def number_stream(stream: IterableDataset, accelerator: Accelerator) -> IterableDataset:
    """
    Adds the column `rlp_record`, the number of each row in a pass.

    Data-loader workers and processes read different shards of a stream. Together, they use each number once. The
    numbers have no gaps if all shards are equally long.

    Args:
        stream ([`~datasets.IterableDataset`]):
            Rows.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator. It decides how processes share the stream.

    Returns:
        [`~datasets.IterableDataset`]: The same rows, numbered in each pass.
    """
    num_readers, reader = find_data_process(accelerator)
    # As in accelerate: with fewer shards, each process reads the whole stream and drops the rows of the others.
    if accelerator.split_batches or stream.num_shards < num_readers:
        num_readers, reader = 1, 0
    num_shards = stream.shard(num_readers, reader).num_shards
    settings = {"num_shards": num_shards, "num_readers": num_readers, "reader": reader}
    return stream.map(_add_number, with_indices=True, fn_kwargs=settings)


def find_data_process(accelerator: Accelerator) -> tuple[int, int]:
    """
    Finds which part of the data this process trains on. Tensor parallel processes get the same part.

    Args:
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Returns:
        `tuple[int, int]`: Number of parts, and number of the part of this process.
    """
    parallelism = accelerator.parallelism_config
    group_size = 1 if parallelism is None else parallelism.tp_size * parallelism.cp_size
    return accelerator.num_processes // group_size, accelerator.process_index // group_size


def _add_number(row: dict[str, Any], index: int, num_shards: int, num_readers: int, reader: int) -> dict[str, Any]:
    """Numbers a row. `index` is its number among the rows that this data-loader worker reads in this pass."""
    worker = get_worker_info()
    if worker is not None:
        index = index * min(worker.num_workers, num_shards) + worker.id  # workers without a shard read nothing
    return {RECORD: index * num_readers + reader}


def find_stream_position(checkpoint: str, args: RLPRewardConfig) -> tuple[int, int]:
    """
    Finds where in a stream a run stopped.

    transformers does not know the length of a stream, so it takes the batches of all passes for those of the first
    one. A run that resumes in a later pass would start that pass again.

    Args:
        checkpoint (`str`):
            Folder of the checkpoint.
        args ([`RLPRewardConfig`]):
            Configuration of the run. `gradient_accumulation_steps` must be that of the stopped run.

    Returns:
        `tuple[int, int]`: Number of complete passes, and number of batches of the next pass that the run had read.
    """
    state = load_state(checkpoint)
    passes = int(state.epoch)
    # The fraction is the share of the batches of the whole run, see `Trainer`.
    batches = round((state.epoch - passes) * state.max_steps * args.gradient_accumulation_steps)
    return passes, 0 if args.ignore_data_skip else batches
