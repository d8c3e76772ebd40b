import json

import pytest

from trl_rlp.storage.shards import cut_shards, work_in_shards


SHARDS = [[2, 0], [3, 1], [4]]


class Worker:
    """Returns `{"square": row ** 2}` for each row. Is interrupted before shard `stop_before`."""

    def __init__(self, stop_before=None):
        self.stop_before = stop_before
        self.finished = []

    def __call__(self, index, rows, advance):
        if index == self.stop_before:
            raise KeyboardInterrupt
        self.finished.append(index)
        advance(len(rows))
        return [{"square": row**2} for row in rows]


def run(worker, folder=None, **fingerprint):
    return work_in_shards(
        SHARDS, worker, description="Squaring", output_dir=folder, fingerprint={"policy": "a", **fingerprint}
    )


SQUARES = [{"square": row**2} for row in range(5)]


def test_rows_are_split_in_their_order():
    assert cut_shards([4, 3, 2, 1, 0], 2) == [[4, 3], [2, 1], [0]]
    assert cut_shards([0, 1], 8) == [[0, 1]]


def test_records_are_returned_in_the_order_of_the_rows(tmp_path):
    assert run(Worker()) == SQUARES
    assert run(Worker(), tmp_path / "new" / "folder") == SQUARES


def test_an_interrupted_run_resumes_after_the_last_finished_shard(tmp_path):
    first, second, third = Worker(stop_before=1), Worker(), Worker()
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path)
    assert first.finished == [0]
    assert run(second, tmp_path) == SQUARES
    assert second.finished == [1, 2]
    assert run(third, tmp_path) == SQUARES
    assert third.finished == []


def test_records_that_are_not_final_are_made_again(tmp_path):
    """Rows 0 and 3 have no final record at first. The second call works on these two only."""
    asked = []

    def work(index, rows, advance):
        asked.extend(rows)
        return [{"square": row**2, "is_final": row not in (0, 3) or asked.count(row) > 1} for row in rows]

    def run_twice(folder):
        return [
            work_in_shards(
                SHARDS,
                work,
                description="Squaring",
                output_dir=folder,
                fingerprint={},
                is_final=lambda record: record["is_final"],
            )
            for _ in range(2)
        ]

    first, second = run_twice(tmp_path)
    assert [record["is_final"] for record in first] == [False, True, True, False, True]
    assert [record["square"] for record in second] == [0, 1, 4, 9, 16] and all(row["is_final"] for row in second)
    assert asked == [2, 0, 3, 1, 4, 0, 3]


def test_a_shard_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def crash(source, target):
        raise OSError("disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr("os.replace", crash)
        run(Worker(), tmp_path)
    assert not list(tmp_path.glob("shard-*.jsonl"))
    assert run(Worker(), tmp_path) == SQUARES


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
    assert run(Worker(), tmp_path) == SQUARES


@pytest.mark.parametrize("text", ['{"poli', "3", ""])
def test_a_damaged_manifest_is_named(tmp_path, text):
    run(Worker(), tmp_path)
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(ValueError, match=r"samples\.json is damaged, so the settings .* are unknown\. Choose another"):
        run(Worker(), tmp_path)


@pytest.mark.parametrize(
    "text", ["", '{"row": 3', '{"square": 9}\n{"square": 1}\n', '{"row": 1}\n{"row": 3}\n', "[]\n[]\n"]
)
def test_a_damaged_shard_is_named_and_only_its_rows_are_computed_again(tmp_path, text):
    run(Worker(), tmp_path)
    (tmp_path / "shard-00001.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"shard-00001\.jsonl is damaged\. Delete it and run again"):
        run(Worker(), tmp_path)
    (tmp_path / "shard-00001.jsonl").unlink()
    worker = Worker()
    assert run(worker, tmp_path) == SQUARES
    assert worker.finished == [1]


def test_shards_are_json_lines(tmp_path):
    run(Worker(), tmp_path)
    lines = (tmp_path / "shard-00000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"row": 2, "square": 4}, {"row": 0, "square": 0}]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "samples.json",
        *[f"shard-0000{index}.jsonl" for index in range(3)],
    ]
