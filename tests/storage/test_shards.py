import re
import signal
import threading
import time
from pathlib import Path

import pytest
from datasets import Dataset, Features, List, Value

from tests.programs import run_two_processes
from trl_rlp.storage import shards as shards_module
from trl_rlp.storage.shards import MAX_SHARDS, choose_shard_size, map_shards


SHARDS = [[2, 0], [3, 1], [4]]
ROWS = Dataset.from_dict({"number": [0, 1, 2, 3, 4], "text": list("abcde")})
SQUARES = [{"square": row**2} for row in range(5)]


class Worker:
    """Squares numbers. Is interrupted before shard `stop_before`."""

    def __init__(self, stop_before=None):
        self.stop_before = stop_before
        self.finished = []

    def __call__(self, index, batch, advance):
        if index == self.stop_before:
            raise KeyboardInterrupt
        self.finished.append(index)
        advance(len(batch["number"]))
        return {"square": [number**2 for number in batch["number"]]}


def run(worker, folder=None, shards=SHARDS, **fingerprint):
    return map_shards(
        ROWS,
        worker,
        description="Squaring",
        shards=shards,
        output_dir=folder,
        fingerprint={"policy": "a", **fingerprint},
    )


def test_results_are_in_the_order_of_the_rows(tmp_path):
    assert run(Worker()).to_list() == SQUARES
    result = run(Worker(), tmp_path / "new" / "folder")
    assert result.to_list() == SQUARES
    assert {file["filename"] for file in result.cache_files} == {
        str(tmp_path / "new" / "folder" / f"shard-0000{index}.arrow") for index in range(3)
    }


def test_work_gets_the_columns_of_its_rows():
    seen = {}

    def work(index, batch, advance):
        seen[index] = batch
        return {"square": batch["number"]}

    run(work)
    assert seen[1] == {"number": [3, 1], "text": ["d", "b"]}


def test_rows_are_cut_into_shards_by_default(tmp_path):
    worker = Worker()
    result = map_shards(ROWS, worker, description="Squaring", shard_size=2, output_dir=tmp_path, fingerprint={})
    assert result.to_list() == SQUARES and worker.finished == [0, 1, 2]


def test_shards_may_have_any_number_of_results(tmp_path):
    def odd(index, batch, advance):
        return {"odd": [number for number in batch["number"] if number % 2]}

    results = [
        map_shards(ROWS, odd, description="Odd", shard_size=size, output_dir=tmp_path / str(size), fingerprint={})
        for size in (1, 2, 8)
    ]
    assert [result["odd"][:] for result in results] == [[1, 3]] * 3
    with pytest.raises(ValueError, match="`work` must return one row for each row"):
        run(odd)


def test_columns_that_are_empty_in_some_shards_keep_their_type():
    def name(index, batch, advance):
        return {"name": [None if number < 3 else [str(number)] for number in batch["number"]]}

    result = map_shards(ROWS, name, description="Naming", shard_size=2)
    assert result["name"][:] == [None, None, None, ["3"], ["4"]]
    assert result.features["name"] == List(Value("string"))


def test_features_are_the_types_of_the_result():
    features = Features({"square": Value("float32")})
    result = map_shards(ROWS, Worker(), description="Squaring", features=features)
    assert result.features == features and result["square"][:] == [0.0, 1.0, 4.0, 9.0, 16.0]
    empty = map_shards(ROWS.select([]), Worker(), description="Squaring", features=features)
    assert empty.features == features and len(empty) == 0


def test_several_shards_at_once_run_in_threads():
    """Three shards meet at a barrier, so all of them run at the same time."""
    barrier = threading.Barrier(3, timeout=60)

    def square(index, batch, advance):
        barrier.wait()
        return Worker()(index, batch, advance)

    result = map_shards(ROWS, square, description="Squaring", shards=SHARDS, at_once=3)
    assert result.to_list() == SQUARES


def test_an_error_in_a_thread_stops_the_others_after_their_shards(tmp_path):
    def square(index, batch, advance):
        if index == 0:
            raise LookupError("no answer")
        return Worker()(index, batch, advance)

    with pytest.raises(LookupError, match="no answer"):
        map_shards(ROWS, square, description="Squaring", shards=SHARDS, at_once=2, output_dir=tmp_path, fingerprint={})
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_resumes_after_the_last_finished_shard(tmp_path):
    first, second, third = Worker(stop_before=1), Worker(), Worker()
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path)
    assert first.finished == [0]
    assert run(second, tmp_path).to_list() == SQUARES
    assert second.finished == [1, 2]
    assert run(third, tmp_path).to_list() == SQUARES
    assert third.finished == []


def test_a_claim_of_an_interrupted_run_is_taken_over_at_once(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        run(Worker(stop_before=1), tmp_path)
    (tmp_path / ".claim-00001").write_text('{"host": "elsewhere", "pid": 1, "started": 0}')
    assert run(Worker(), tmp_path).to_list() == SQUARES
    assert "1 shard(s)" in caplog.text and len(caplog.messages) == 1


def test_the_shard_of_a_process_that_died_is_taken_over(tmp_path, caplog):
    worker = Worker()

    def work(index, batch, advance):
        if index == 0:
            claim = (tmp_path / ".claim-00000").read_text().replace('"started": ', '"started": 1')
            (tmp_path / ".claim-00001").write_text(claim)
        return worker(index, batch, advance)

    assert run(work, tmp_path).to_list() == SQUARES
    assert worker.finished == [0, 2, 1]
    assert "died before it finished shard 1. This process takes the shard over." in caplog.text


def test_the_shard_of_another_process_is_awaited_and_not_made_again(tmp_path, monkeypatch):
    """While this process works on shard 0, another one holds shard 1. It finishes after a while."""
    monkeypatch.setattr(shards_module, "POLL_SECONDS", 0.01)
    run(Worker(), tmp_path / "other")
    worker = Worker()

    def finish_later():
        time.sleep(0.3)
        (tmp_path / "other" / "shard-00001.arrow").rename(tmp_path / "shard-00001.arrow")
        (tmp_path / ".claim-00001").unlink()

    def work(index, batch, advance):
        if index == 0:
            (tmp_path / ".claim-00001").write_text((tmp_path / ".claim-00000").read_text())
            threading.Thread(target=finish_later).start()
        return worker(index, batch, advance)

    assert run(work, tmp_path).to_list() == SQUARES
    assert worker.finished == [0, 2]


def test_a_shard_that_another_process_finishes_first_is_no_error(tmp_path, monkeypatch):
    """Shard 0 was taken over. A second thread sees its file while this process still works on it."""
    monkeypatch.setattr(shards_module, "POLL_SECONDS", 0.01)
    run(Worker(), tmp_path / "other")
    is_seen = threading.Event()
    count = shards_module._Job._count_finished

    def count_finished(self, indices):
        count(self, indices)
        if 0 not in self.missing:
            is_seen.set()

    def work(index, batch, advance):
        if index == 0:
            (tmp_path / "other" / "shard-00000.arrow").rename(tmp_path / "shard-00000.arrow")
            assert is_seen.wait(60)
        return Worker()(index, batch, advance)

    monkeypatch.setattr(shards_module._Job, "_count_finished", count_finished)
    result = map_shards(
        ROWS, work, description="Squaring", shards=SHARDS, at_once=2, output_dir=tmp_path, fingerprint={}
    )
    assert result.to_list() == SQUARES


def test_the_progress_bar_counts_each_row_once(tmp_path, monkeypatch):
    bars = []

    class Bar(shards_module.tqdm):
        def __init__(self, **settings):
            super().__init__(**settings)
            bars.append(self)

    monkeypatch.setattr(shards_module, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        run(Worker(stop_before=2), tmp_path)
    run(Worker(), tmp_path)
    run(lambda index, batch, advance: {"square": batch["number"]})
    assert [(bar.n, bar.total) for bar in bars] == [(4, 5), (5, 5), (5, 5)]


def test_results_that_are_not_final_are_made_again(tmp_path):
    """Rows 0 and 3 have no final result at first. The second call works on these two only."""
    asked = []

    def work(index, batch, advance):
        asked.extend(batch["number"])
        final = [number not in (0, 3) or asked.count(number) > 1 for number in batch["number"]]
        return {"square": [number**2 for number in batch["number"]], "is_final": final}

    first, second = (
        map_shards(
            ROWS,
            work,
            description="Squaring",
            shards=SHARDS,
            output_dir=tmp_path,
            fingerprint={},
            is_final=lambda record: record["is_final"],
        ).to_list()
        for _ in range(2)
    )
    assert [record["is_final"] for record in first] == [False, True, True, False, True]
    assert [record["square"] for record in second] == [0, 1, 4, 9, 16] and all(row["is_final"] for row in second)
    assert asked == [2, 0, 3, 1, 4, 0, 3]
    assert not list(tmp_path.glob("retry-*"))


def test_a_shard_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def crash(source, target):
        if "shard-" in str(target):
            raise OSError("disk is full")
        source.rename(target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr("os.replace", crash)
        run(Worker(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]
    assert run(Worker(), tmp_path).to_list() == SQUARES


def test_another_fingerprint_is_refused_by_name_and_the_folder_stays_as_it_is(tmp_path):
    run(Worker(), tmp_path, temperature=1.0, eos_token_ids=(1, 2))
    run(Worker(), tmp_path, temperature=1.0, eos_token_ids=(1, 2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    worker = Worker()
    with pytest.raises(
        ValueError, match=r"other settings: `temperature` was 1\.0 and is 0\.7\. Choose another `output_dir`"
    ):
        run(worker, tmp_path, temperature=0.7, eos_token_ids=(1, 2))
    with pytest.raises(ValueError, match="`policy` was 'a' and is 'b'"):
        run(worker, tmp_path, policy="b", temperature=1.0, eos_token_ids=(1, 2))
    with pytest.raises(ValueError, match="`top_k` was None and is 5"):
        run(worker, tmp_path, temperature=1.0, eos_token_ids=(1, 2), top_k=5)
    assert worker.finished == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_shards_without_a_manifest_are_refused(tmp_path):
    run(Worker(), tmp_path)
    (tmp_path / "samples.json").unlink()
    with pytest.raises(ValueError, match=r"holds no samples\.json, so the origin of its files is unknown\. Choose an"):
        run(Worker(), tmp_path)


def test_other_files_in_the_folder_are_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert run(Worker(), tmp_path).to_list() == SQUARES


@pytest.mark.parametrize("text", ['{"poli', "3", ""])
def test_a_damaged_manifest_is_named(tmp_path, text):
    run(Worker(), tmp_path)
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(ValueError, match=r"samples\.json is damaged, so the settings .* are unknown\. Choose another"):
        run(Worker(), tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "another shard", "plain Arrow"])
def test_a_damaged_shard_is_named_and_only_its_rows_are_computed_again(tmp_path, damage):
    run(Worker(), tmp_path)
    path = tmp_path / "shard-00001.arrow"
    content = path.read_bytes()
    if damage == "another shard":
        path.write_bytes((tmp_path / "shard-00000.arrow").read_bytes())
    elif damage == "plain Arrow":
        Dataset.from_dict({"square": [9, 1]}).save_to_disk(str(tmp_path / "plain"))
        (tmp_path / "plain" / "data-00000-of-00001.arrow").rename(path)
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b'{"row": 3}\n'}[damage])
    with pytest.raises(ValueError, match=r"shard-00001\.arrow is damaged\. Delete it and run again. Only its 2 rows"):
        run(Worker(), tmp_path)
    path.unlink()
    worker = Worker()
    assert run(worker, tmp_path).to_list() == SQUARES
    assert worker.finished == [1]


def test_two_processes_share_shards_errors_and_folders(tmp_path):
    """Process 1 kills itself at the end. Process 0 then finishes alone."""
    results = run_two_processes(Path(__file__).with_name("two_process_shards.py"), tmp_path)
    errors, other_errors = (result.stderr for result in results)
    assert [result.returncode for result in results] == [0, -signal.SIGKILL], errors[-3000:] + other_errors[-3000:]
    assert (tmp_path / "the other process was killed").exists()
    assert re.search(r"died before it finished shard \d\. This process takes the shard over\.", errors)
    assert "Halving" in errors and "Halving" not in other_errors


@pytest.mark.parametrize(("num_rows", "size"), [(1, 256), (256_000, 256), (256_001, 257), (1_000_000, 1000)])
def test_many_rows_have_larger_shards_and_not_more(num_rows, size):
    assert choose_shard_size(num_rows, smallest=256) == size
    assert -(-num_rows // size) <= MAX_SHARDS
