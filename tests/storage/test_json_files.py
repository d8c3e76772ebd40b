import datetime
import errno
import json
import math

import pytest
from datasets import Dataset, Features, Json, Value
from safetensors import SafetensorError

from trl_rlp.storage.json_files import name_failed_write, read_json, replace_nan, write_json, write_rows, write_text
from trl_rlp.storage.loading import load_rows


def test_a_value_survives_writing_and_reading(tmp_path):
    value = {"π": [1, 2.5, None, True], "nested": {"text": "é"}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == read_json(str(tmp_path / "value.json")) == value
    assert "π" in (tmp_path / "value.json").read_text(encoding="utf-8")


def crash(*_):
    raise OSError("disk is full")


def test_a_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "file.txt", "old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr("os.replace", crash)
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old"
    write_text(tmp_path / "file.txt", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_rows_are_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path, rows = tmp_path / "rows.jsonl", Dataset.from_dict({"a": ["é", "x\n"], "b": [[1], [2, 3]]})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr("trl_rlp.storage.json_files.replace_nan", lambda row: row if row["b"] == [1] else crash())
        write_rows(path, rows)
    assert not path.exists()
    write_rows(str(path), rows)
    assert load_rows(str(path)).to_list() == rows.to_list()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_rows_are_written_exactly(tmp_path):
    """pandas writes ten decimals, and times in milliseconds since 1970. A share of 1/3 then misses its threshold."""
    time = datetime.datetime(2024, 1, 2, 3, 4, 5, 678)
    values = {
        "number": [1e-12, 1 / 3, 2**62 + 1, math.nan],
        "time": [time, None, time, time],
        "day": [time.date(), None, None, None],
        "nested": [{"role": "é\u2028/", "calls": [{"a": 0.1}]}, None, {"calls": [{"b": 1}]}, {}],
    }
    features = {"number": Value("float64"), "time": Value("timestamp[us]"), "day": Value("date32"), "nested": Json()}
    rows = Dataset.from_dict(values, features=Features(features))
    write_rows(tmp_path / "rows.jsonl", rows.with_format("numpy"))
    assert [json.loads(line) for line in open(tmp_path / "rows.jsonl", encoding="utf-8")] == [
        {"number": 1e-12, "time": "2024-01-02T03:04:05.000678", "day": "2024-01-02", "nested": values["nested"][0]},
        {"number": 1 / 3, "time": None, "day": None, "nested": None},
        {"number": float(2**62 + 1), "time": "2024-01-02T03:04:05.000678", "day": None, "nested": values["nested"][2]},
        {"number": None, "time": "2024-01-02T03:04:05.000678", "day": None, "nested": {}},
    ]


def test_nan_and_infinity_become_none():
    value = {"a": math.nan, "b": [(math.inf, 1.0), {"c": -math.inf}], "d": "text", "e": 3, "f": True}
    cleaned = replace_nan(value)
    assert cleaned == {"a": None, "b": [[None, 1.0], {"c": None}], "d": "text", "e": 3, "f": True}
    assert json.dumps(cleaned, allow_nan=False)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: 'folder'"),
        (SafetensorError("No space left on device"), r"Cannot write 'folder' \(No space left on device\)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "other"), "No such file: 'other'"),
        (OSError("Hub"), "^Hub$"),
    ],
)
def test_an_error_of_writing_names_the_path_unless_it_names_one(error, message):
    with pytest.raises(OSError, match=message), name_failed_write("folder"):
        raise error
