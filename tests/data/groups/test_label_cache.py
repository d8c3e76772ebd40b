import logging
import sqlite3
from types import SimpleNamespace

import pytest

from trl_rlp.data.groups.label_cache import LabelCache
from trl_rlp.storage import processes


def test_labels_outlive_the_object_and_unknown_keys_are_not_returned(tmp_path):
    path = tmp_path / "new folder" / "labels.sqlite"
    LabelCache(path).store({b"a": 2, b"b": 0})
    assert LabelCache(path).find([b"b", b"c", b"a"]) == {b"a": 2, b"b": 0}


def test_a_lookup_can_have_more_keys_than_one_statement(tmp_path):
    cache = LabelCache(tmp_path / "labels.sqlite")
    labels = {index.to_bytes(4): index % 3 for index in range(5000)}
    cache.store(labels)
    assert cache.find(list(labels)) == labels
    assert cache.find([]) == {}


def test_labels_of_all_processes_are_read_and_each_process_writes_its_own_file(tmp_path, monkeypatch):
    path = tmp_path / "labels.sqlite"
    for index in (0, 1, 2):
        monkeypatch.setattr(processes, "process_state", lambda index=index: SimpleNamespace(process_index=index))
        LabelCache(path).store({bytes([index]): index})
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"labels.sqlite{end}" for end in ("", ".1", ".2")]
    assert LabelCache(path).find([bytes([index]) for index in range(4)]) == {
        bytes([index]): index for index in range(3)
    }
    (tmp_path / "labels.sqlite.3").write_text("no database")
    with pytest.raises(ValueError, match=r"labels\.sqlite\.3' is not a label cache"):
        LabelCache(path)


def test_two_writers_can_share_a_file_and_store_the_same_label(tmp_path):
    first, second = (LabelCache(tmp_path / "labels.sqlite") for _ in range(2))
    first.store({b"a": 1})
    second.store({b"a": 1, b"b": 2})
    assert first.find([b"a", b"b"]) == {b"a": 1, b"b": 2}


@pytest.mark.parametrize("content", ["not a database, but long enough for a header " * 40, None])
def test_a_file_that_is_not_a_label_cache_raises(tmp_path, content):
    path = tmp_path / "other"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE labels (name TEXT)")
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match="`cache`=.*other' is not a label cache"):
        LabelCache(path)


def test_a_folder_raises(tmp_path):
    with pytest.raises(ValueError, match="`cache`=.* is a folder. Name a file in it"):
        LabelCache(tmp_path)


def test_a_cache_that_is_full_still_reads_and_says_so_once(tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    cache = LabelCache(tmp_path / "labels.sqlite")
    cache.store({b"a": 1})
    cache._connection.execute("PRAGMA max_page_count = 2")
    cache.store({number.to_bytes(16): 0 for number in range(10_000)})
    cache.store({b"b": 2})
    assert cache.find([b"a", b"b"]) == {b"a": 1}
    assert sum("cannot be written (database or disk is full)" in record.getMessage() for record in caplog.records) == 1
    assert LabelCache(tmp_path / "labels.sqlite").find([b"a"]) == {b"a": 1}


def test_a_file_that_cannot_be_opened_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_rlp.data.groups.label_cache._LOCK_SECONDS", 0.05)
    other = sqlite3.connect(tmp_path / "labels.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OSError, match=r"`cache`='.*labels.sqlite' cannot be used \(database is locked\)"):
        LabelCache(tmp_path / "labels.sqlite")
