import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from trl_rlp.storage import loading
from trl_rlp.storage.loading import load_rows


def test_a_json_lines_file_and_a_saved_folder_give_the_same_rows(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    assert load_rows(str(tmp_path / "rows.jsonl")).to_list() == rows
    assert load_rows(str(tmp_path / "folder")).to_list() == rows


@pytest.mark.parametrize(
    "name",
    ["missing.jsonl", "missing.csv.gz", "missing.parquet", "./missing", "/no/such/folder", "~/no", Path("missing")],
)
def test_missing_local_paths_are_not_looked_up_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match="No dataset at"):
        load_rows(name)


def test_the_error_of_an_empty_file_names_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.touch()
    with pytest.raises(ValueError, match="rows.jsonl' is empty"):
        load_rows(str(path))


def test_text_stays_text_and_missing_keys_are_none(tmp_path):
    """`load_dataset` would convert text that looks like a date."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completions": ["1945-09-02", "1945-05-08"]}\n\n{"completions": ["2000-01-01"], "more": 1}\n')
    assert load_rows(str(path)).to_list() == [
        {"completions": ["1945-09-02", "1945-05-08"], "more": None},
        {"completions": ["2000-01-01"], "more": 1},
    ]
    (tmp_path / "rows.json").write_text('[{"prompt": "a"}, {"prompt": "b"}]')
    assert load_rows(str(tmp_path / "rows.json"))["prompt"][:] == ["a", "b"]


@pytest.mark.parametrize(
    "text, match", [('{"a": 1', "is not JSON"), ("[1, 2]", "has rows that are not objects, first in row 0")]
)
def test_the_error_of_an_invalid_file_names_it(tmp_path, text, match):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"rows.jsonl' {match}"):
        load_rows(str(tmp_path / "rows.jsonl"))


def test_text_and_messages_in_one_column_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}\n')
    with pytest.raises(ValueError, match="rows.jsonl' has several kinds of values in one column"):
        load_rows(str(tmp_path / "rows.jsonl"))


def test_a_saved_dataset_dict_has_splits(tmp_path):
    splits = {"train": Dataset.from_list([{"prompt": "a"}]), "test": Dataset.from_list([{"prompt": "b"}])}
    DatasetDict(splits).save_to_disk(tmp_path / "folder")
    assert load_rows(tmp_path / "folder")["prompt"][:] == ["a"]
    assert load_rows(tmp_path / "folder", "test")["prompt"][:] == ["b"]
    with pytest.raises(ValueError, match=r"folder' has the splits \['train', 'test'\], but no split 'dev'"):
        load_rows(tmp_path / "folder", "dev")


def test_a_folder_of_other_files_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="The folder '.*' was not written by `save_to_disk`. Pass a JSON Lines"
    ):
        load_rows(tmp_path)


@pytest.mark.parametrize("convert", [str, Path])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, convert):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    assert load_rows(convert("~/rows.jsonl")).to_list() == [{"prompt": "a"}]


@pytest.mark.parametrize("kind", [FileNotFoundError, ConnectionError])
def test_a_name_that_the_hub_does_not_have_is_named_with_a_remedy(monkeypatch, kind):
    def fail(name, split):
        raise kind("Couldn't reach the Hub")

    monkeypatch.setattr(loading, "load_dataset", fail)
    with pytest.raises(kind, match="No dataset could be loaded from 'prompts'. Pass a JSON Lines.*reach the Hub"):
        load_rows("prompts")
