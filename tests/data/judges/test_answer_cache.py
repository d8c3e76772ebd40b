import json
from types import SimpleNamespace

import pytest

from trl_rlp.data.judges.answer_cache import AnswerCache
from trl_rlp.storage import processes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "answers.jsonl"


def test_answers_are_found_again_in_another_program(path):
    cache = AnswerCache(path)
    assert cache.find("judge", "q") is None
    cache.store("judge", "q", answer={"text": "A", "finished": True})
    cache.store("judge", "other", answer={"text": None, "finished": False})
    for opened in (cache, AnswerCache(str(path))):
        assert opened.find("judge", "q") == {"text": "A", "finished": True}
        assert opened.find("judge", "other") == {"text": None, "finished": False}
        assert opened.find("another judge", "q") is None


def test_answers_of_all_processes_are_read_and_each_process_writes_its_own_file(path, monkeypatch):
    for index in (0, 1):
        monkeypatch.setattr(processes, "process_state", lambda index=index: SimpleNamespace(process_index=index))
        AnswerCache(path).store(index, answer={"text": str(index)})
    for cache in (AnswerCache(path), AnswerCache(path)):
        assert [cache.find(index)["text"] for index in (0, 1)] == ["0", "1"]
        cache.keep("kept", answer={"text": "in memory"})
        assert cache.find("kept") == {"text": "in memory"}
    assert [len(file.read_text().splitlines()) for file in (path, path.with_name("answers.jsonl.1"))] == [1, 1]


def test_a_cache_without_a_path_lives_in_memory():
    cache = AnswerCache()
    cache.store("q", answer={"text": "A"})
    assert cache.find("q") == {"text": "A"} and AnswerCache().find("q") is None


def test_each_answer_is_on_disk_when_it_is_stored(path):
    cache = AnswerCache(path)
    for number in range(3):
        cache.store(number, answer={"text": "\ud83d\n"})
        lines = path.read_text().splitlines()
        assert len(lines) == number + 1 and json.loads(lines[-1])["text"] == "\ud83d\n"


def test_a_cut_line_is_asked_again_and_harms_no_other(path):
    cache = AnswerCache(path)
    for number in range(3):
        cache.store(number, answer={"text": str(number)})
    path.write_bytes(path.read_bytes()[:-9])
    cache = AnswerCache(path)
    assert [cache.find(number) and cache.find(number)["text"] for number in range(3)] == ["0", "1", None]
    cache.store(2, answer={"text": "2"})
    assert [AnswerCache(path).find(number)["text"] for number in range(3)] == ["0", "1", "2"]


def test_a_full_disk_is_named_and_later_answers_are_kept(path, monkeypatch):
    cache = AnswerCache(path)
    cache.store(0, answer={"text": "0"})

    class FullDisk:
        """Writes half of a line, as a full disk does."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, line):
            with open(path, "ab") as file:
                file.write(line[: len(line) // 2])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "open", lambda *_: FullDisk())
        with pytest.raises(OSError, match=r"cannot be written to '.*answers\.jsonl' \(No space left on device\)"):
            cache.store(1, answer={"text": "1"})
    cache.store(2, answer={"text": "2"})
    opened = AnswerCache(path)
    assert [opened.find(number) and opened.find(number)["text"] for number in range(3)] == ["0", None, "2"]


@pytest.mark.parametrize("content", ["notes\n", "[1]\n", '{"text": "A"}\n', '{"key": "a"}\n3\n'])
def test_another_file_is_refused_and_stays_unchanged(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"`cache`='.*notes\.txt' is not a file of answers \(line \d\)\. Name"):
        AnswerCache(path)
    assert path.read_text() == content


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder. Name a file in it, for example 'answers.jsonl'"):
        AnswerCache(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .* Name another file"):
        AnswerCache(tmp_path / "file" / "answers.jsonl")
