from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from pydantic import BaseModel

from tests.report.run_folders import write_lines
from trl_rlp.report.rows import (
    Rows,
    explain_damage,
    read_file_rows,
    read_object,
    read_parquet,
    read_shards,
    read_stage_rows,
)
from trl_rlp.storage.artifacts import save_data


ROWS = [{"a": 1, "b": ["x"]}, {"a": 2, "b": None}, {"a": 3, "b": []}]


@pytest.mark.parametrize("source", [ROWS, Dataset.from_list(ROWS)], ids=["list", "dataset"])
def test_rows_are_taken_in_any_order(source):
    rows = Rows(source)
    assert len(rows) == 3 and rows.names == {"a", "b"}
    assert rows.take([2, 0]) == [ROWS[2], ROWS[0]] and rows.take([]) == []
    assert rows.column("a") == [1, 2, 3]


@pytest.mark.parametrize("source", [ROWS, Dataset.from_list(ROWS)], ids=["list", "dataset"])
def test_columns_are_left_out_if_their_values_have_another_shape(source):
    class Numbers(BaseModel):
        a: int
        b: int

    rows = Rows(source, path=Path("rows"), remedy="Again.")
    assert rows.has_shape("a", Numbers) and not rows.has_shape("b", Numbers)
    kept = rows.without(["b", "c"])
    assert kept.names == {"a"} and kept.take([1]) == [{"a": 2}] and rows.names == {"a", "b"}
    with pytest.raises(ValueError, match=r"^'rows' is damaged \(x\). Again.$"):
        raise kept.describe_damage("x")


def test_rows_of_a_file_may_lack_keys_and_hold_half_surrogates(tmp_path):
    rows = read_file_rows(write_lines(tmp_path / "rows.jsonl", [{"a": "\ud83d"}, {"b": 1}]), BaseModel)
    assert rows.column("a") == ["\ud83d", None] and rows.names == {"a", "b"}
    (tmp_path / "empty.jsonl").touch()
    assert len(read_file_rows(tmp_path / "empty.jsonl", BaseModel)) == 0
    assert read_file_rows(tmp_path / "none.jsonl", BaseModel) is None


def test_a_stage_and_shards_are_read(tmp_path):
    assert (
        read_stage_rows(tmp_path, BaseModel) is None
        and read_shards(tmp_path, BaseModel) is None
        and read_parquet(tmp_path, BaseModel) is None
    )
    save_data(Dataset.from_list(ROWS), tmp_path)
    assert read_stage_rows(tmp_path, BaseModel).take([1]) == [ROWS[1]]
    (arrow,) = (tmp_path / "data").glob("*.arrow")
    for name in ("shard-00001.arrow", "shard-00000.arrow"):
        (tmp_path / name).write_bytes(arrow.read_bytes())
    assert read_shards(tmp_path, BaseModel).column("a") == [1, 2, 3, 1, 2, 3]
    Dataset.from_list(ROWS).to_parquet(tmp_path / "completions_00001.parquet")
    assert read_parquet(tmp_path, BaseModel).column("a") == [1, 2, 3]


def test_damage_is_one_line_with_the_file_and_a_remedy(tmp_path):
    save_data(Dataset.from_list(ROWS), tmp_path)
    (tmp_path / "data" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"data' is damaged \(.*\). Delete the folder of this stage and run") as error:
        read_stage_rows(tmp_path, BaseModel)
    assert "\n" not in str(error.value)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(
        ValueError, match=r"rows.jsonl' is damaged \(.*line 2.*\). Run the command that wrote it again"
    ):
        read_file_rows(tmp_path / "rows.jsonl", BaseModel)
    (tmp_path / "shard-00000.arrow").write_text("no arrow")
    with pytest.raises(ValueError, match="shard-00000.arrow' is damaged"):
        read_shards(tmp_path, BaseModel)


class Row(BaseModel):
    a: float | None


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_a_row_of_another_shape_is_named(kind, tmp_path):
    rows = [{"a": 1.0}, {"a": None}, {"a": "high"}] if kind == "list" else Dataset.from_dict({"a": ["1", "2", "high"]})
    read = Rows(rows, Row, tmp_path / "rows", "Write it again.")
    match = r"rows' is damaged \(row 2: `a` is 'high', not a valid number\). Write it again.$"
    with pytest.raises(ValueError, match=match):
        read.take([2, 0])
    with pytest.raises(ValueError, match=r"\(row \d: `a` is '.*', not a valid number\)"):
        read.column("a")
    assert str(read.describe_damage("no rows")) == f"'{tmp_path / 'rows'}' is damaged (no rows). Write it again."


def test_every_row_of_a_file_is_checked(tmp_path):
    file = write_lines(tmp_path / "rows.jsonl", [{"a": 1.0}] * 600 + [{"a": "high"}])
    with pytest.raises(ValueError, match="rows.jsonl' is damaged .row 600: `a`"):
        read_file_rows(file, Row)
    Dataset.from_list([{"a": "x"}]).to_parquet(tmp_path / "completions_00002.parquet")
    with pytest.raises(ValueError, match="completions_00002.parquet' is damaged .row 0: `a`"):
        read_parquet(tmp_path, Row)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ('{"a": "high"}', "`a` is 'high'"),
        ("[1]", r"it is \[1\], not a valid dictionary"),
        ("\x1b[31m", "Expecting value"),
    ],
)
def test_an_object_of_another_shape_is_damage(tmp_path, text, reason):
    (tmp_path / "object.json").write_text(text)
    with pytest.raises(ValueError, match=rf"object.json' is damaged \(.*{reason}.*\). Write it.$"):
        read_object(tmp_path / "object.json", Row, "Write it.")


def test_the_text_of_an_error_moves_no_cursor(tmp_path):
    def fail():
        raise KeyError("\x1b[2J")

    with pytest.raises(ValueError, match="is damaged") as error:
        explain_damage(tmp_path, "", fail)
    assert "\x1b" not in str(error.value)


def test_a_stage_has_one_dataset_and_no_splits(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"data' is damaged \(.*`Dataset`.*\). Delete the folder of this stage"):
        read_stage_rows(tmp_path, BaseModel)


def test_errors_that_are_not_damage_stay_as_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError):
        explain_damage(tmp_path, "Remedy.", lambda: 1 / 0)
