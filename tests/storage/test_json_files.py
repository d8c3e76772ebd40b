import json
import math

import pytest

from trl_rlp.storage.json_files import read_json, replace_nan, write_json, write_text


def test_a_value_survives_writing_and_reading(tmp_path):
    value = {"π": [1, 2.5, None, True], "nested": {"text": "é"}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == read_json(str(tmp_path / "value.json")) == value
    assert "π" in (tmp_path / "value.json").read_text(encoding="utf-8")


def test_a_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def crash(source, target):
        raise OSError("disk is full")

    write_text(tmp_path / "file.txt", "old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr("os.replace", crash)
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old"
    write_text(tmp_path / "file.txt", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_nan_and_infinity_become_none():
    value = {"a": math.nan, "b": [(math.inf, 1.0), {"c": -math.inf}], "d": "text", "e": 3, "f": True}
    cleaned = replace_nan(value)
    assert cleaned == {"a": None, "b": [[None, 1.0], {"c": None}], "d": "text", "e": 3, "f": True}
    assert json.dumps(cleaned, allow_nan=False)
