import errno
import json
import math
from pathlib import Path

import pytest
from datasets import Dataset
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
        patch.setattr(Dataset, "to_json", lambda rows, path: (Path(path).write_text('{"a'), crash()))
        write_rows(path, rows)
    assert not path.exists()
    write_rows(str(path), rows)
    assert load_rows(str(path)).to_list() == rows.to_list()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


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
