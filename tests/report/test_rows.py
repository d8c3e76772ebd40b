import pytest
from datasets import Dataset

from tests.report.run_folders import write_lines
from trl_rlp.report.rows import Rows, explain_damage, read_file_rows, read_parquet, read_shards, read_stage_rows
from trl_rlp.storage.artifacts import save_data


ROWS = [{"a": 1, "b": ["x"]}, {"a": 2, "b": None}, {"a": 3, "b": []}]


@pytest.mark.parametrize("source", [ROWS, Dataset.from_list(ROWS)], ids=["list", "dataset"])
def test_rows_are_taken_in_any_order(source):
    rows = Rows(source)
    assert len(rows) == 3 and rows.names == {"a", "b"}
    assert rows.take([2, 0]) == [ROWS[2], ROWS[0]] and rows.take([]) == []
    assert rows.column("a") == [1, 2, 3]


def test_rows_of_a_file_may_lack_keys_and_hold_half_surrogates(tmp_path):
    rows = read_file_rows(write_lines(tmp_path / "rows.jsonl", [{"a": "\ud83d"}, {"b": 1}]))
    assert rows.column("a") == ["\ud83d", None] and rows.names == {"a", "b"}
    (tmp_path / "empty.jsonl").touch()
    assert len(read_file_rows(tmp_path / "empty.jsonl")) == 0
    assert read_file_rows(tmp_path / "none.jsonl") is None


def test_a_stage_and_shards_are_read(tmp_path):
    assert read_stage_rows(tmp_path) is None and read_shards(tmp_path) is None and read_parquet(tmp_path) is None
    save_data(Dataset.from_list(ROWS), tmp_path)
    assert read_stage_rows(tmp_path).take([1]) == [ROWS[1]]
    (arrow,) = (tmp_path / "data").glob("*.arrow")
    for name in ("shard-00001.arrow", "shard-00000.arrow"):
        (tmp_path / name).write_bytes(arrow.read_bytes())
    assert read_shards(tmp_path).column("a") == [1, 2, 3, 1, 2, 3]
    Dataset.from_list(ROWS).to_parquet(tmp_path / "completions_00001.parquet")
    assert read_parquet(tmp_path).column("a") == [1, 2, 3]


def test_damage_is_one_line_with_the_file_and_a_remedy(tmp_path):
    save_data(Dataset.from_list(ROWS), tmp_path)
    (tmp_path / "data" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"data' is damaged \(.*\). Delete the folder of this stage and run") as error:
        read_stage_rows(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(
        ValueError, match=r"rows.jsonl' is damaged \(.*line 2.*\). Run the command that wrote it again"
    ):
        read_file_rows(tmp_path / "rows.jsonl")
    (tmp_path / "shard-00000.arrow").write_text("no arrow")
    with pytest.raises(ValueError, match="shard-00000.arrow' is damaged"):
        read_shards(tmp_path)


def test_errors_that_are_not_damage_stay_as_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError):
        explain_damage(tmp_path, "Remedy.", lambda: 1 / 0)
