import pytest
from datasets import Dataset

from trl_rlp.storage import shard_folder
from trl_rlp.storage.shard_folder import ShardFolder, open_shard_folder


SHARDS = [range(0, 2), range(2, 4)]


def build(path, run="this", is_final=None):
    return ShardFolder(path, run, SHARDS, None, is_final)


def test_finished_shards_are_listed(tmp_path):
    folder = build(tmp_path)
    assert folder.list_finished() == []
    folder.write(1, {"x": [1, 2]}, [2, 3], {})
    assert folder.list_finished() == [1] and folder.is_finished(1) and not folder.is_finished(0)


def test_an_error_reaches_the_other_processes_of_the_same_run_only(tmp_path, monkeypatch):
    class TwoProcesses:
        num_processes, process_index = 2, 1

    monkeypatch.setattr(shard_folder, "process_state", TwoProcesses)
    with pytest.raises(LookupError), build(tmp_path).report_failure("Sampling"):
        raise LookupError("no\nanswer")
    message = "Sampling stopped, because process 1 stopped with LookupError: no answer"
    with pytest.raises(RuntimeError, match=message):
        build(tmp_path).list_finished()
    with pytest.raises(RuntimeError), build(tmp_path).report_failure("Sampling"):  # the first error stays
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match=message):
        build(tmp_path).list_finished()
    assert build(tmp_path, run="next").list_finished() == []


def test_a_single_process_leaves_no_error_behind(tmp_path):
    with pytest.raises(LookupError), build(tmp_path).report_failure("Sampling"):
        raise LookupError
    assert not list(tmp_path.iterdir())


def test_what_an_interrupted_run_left_is_removed(tmp_path):
    for name in (".error-old.json", ".run-old", ".claim-00000"):
        (tmp_path / name).touch()
    build(tmp_path).prepare()
    assert not list(tmp_path.iterdir())


def test_final_rows_of_a_shard_are_kept(tmp_path):
    def is_final(record):
        return record["x"] != 3

    folder = build(tmp_path, is_final=is_final)
    folder.write(0, {"x": [1, 2]}, [0, 1], {})
    folder.write(1, {"x": [3, 4]}, [2, 3], {})
    folder.prepare()
    assert folder.list_finished() == [0]
    saved = folder.read_final_rows(1)
    assert saved == {3: {"x": 4}} and folder.read_final_rows(0) == {}
    folder.write(1, {"x": [5]}, [2], saved)
    assert folder.load()["x"][:] == [1, 2, 5, 4]


def test_the_files_are_arrow_streams_that_datasets_reads(tmp_path):
    build(tmp_path).write(0, {"x": [1, 2]}, [0, 1], {})
    assert Dataset.from_file(str(tmp_path / "shard-00000.arrow"))["x"][:] == [1, 2]


def test_the_main_process_may_prepare_for_longer_than_a_collective_of_training(tmp_path, monkeypatch):
    """`run_on_main` has a time limit of its own."""
    inside = []

    def run_on_main(work):
        inside.append(work)
        return work()

    monkeypatch.setattr(shard_folder, "run_on_main", run_on_main)
    monkeypatch.setattr(ShardFolder, "prepare", lambda self: inside.append(self.path))
    open_shard_folder(tmp_path, {}, SHARDS, None, None)
    assert callable(inside[0]) and inside[1:] == [tmp_path]


def test_a_temporary_folder_is_made_without_an_output_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = open_shard_folder(None, None, SHARDS, None, None)
    assert folder.path.parent == tmp_path and folder.path.is_dir()
