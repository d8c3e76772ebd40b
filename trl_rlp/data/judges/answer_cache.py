"""A file of a judge's answers. With it, an interrupted or repeated run asks only about new pairs."""

import json
import os
from pathlib import Path
from typing import Any

from trl_rlp.storage.fingerprints import value_fingerprint
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import list_process_files


Answer = dict[str, Any]
"""What a judge answered, as plain values by name."""

KEY = "key"


class AnswerCache:
    """
    Keeps answers of judges in memory and, with a path, in a JSON Lines file.

    Each answer is appended to the file when it arrives, so an error or a kill loses no answer that was paid for. The
    file holds one object per line: the answer, and a hash of the question and of everything else that decides the
    answer. One file may serve any number of judges. Entries are never removed. Delete the file to empty the cache.

    Under `accelerate launch`, each process writes its own file: the main process `path`, process 1 `path` with `.1` at
    the end, and so on. All of them are read when the cache is opened.

    Args:
        path (`str` or `os.PathLike`, *optional*):
            File to open or create. Its folder is created too. By default, answers are only kept in memory.

    Raises:
        ValueError: If the path is a folder, cannot be written, or holds something else.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = None
        self._answers: dict[str, Answer] = {}
        self._ends_in_line = False
        if path is not None:
            self.path, *others = list_process_files(expand_path(path))
            for other in others:
                self._read(other, other.read_bytes())
            self._open(self.path)

    def find(self, *question: Any) -> Answer | None:
        """
        Looks up an answer.

        Args:
            question:
                Everything that decides the answer, as plain values.

        Returns:
            `dict`: The answer, or `None` if it is not known.
        """
        return self._answers.get(value_fingerprint(question))

    def store(self, *question: Any, answer: Answer) -> None:
        """
        Keeps an answer. With a path, it is on disk after this call.

        Args:
            question:
                Everything that decides the answer, as plain values.
            answer (`dict`):
                Values that `json` can write, by name.

        Raises:
            OSError: If the file cannot be written.
        """
        key = value_fingerprint(question)
        self._answers[key] = answer
        if self.path is not None:
            self._append((json.dumps({KEY: key, **answer}) + "\n").encode())

    def keep(self, *question: Any, answer: Answer) -> None:
        """
        Keeps an answer in memory only, for example because another process has stored it.

        Args:
            question:
                Everything that decides the answer, as plain values.
            answer (`dict`):
                The answer.
        """
        self._answers[value_fingerprint(question)] = answer

    def _open(self, path: Path) -> None:
        if path.is_dir():
            raise ValueError(f"`cache`='{path}' is a folder. Name a file in it, for example 'answers.jsonl'.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                content = file.read()
        except OSError as error:
            problem = error.strerror or error
            raise ValueError(f"`cache`='{path}' cannot be written ({problem}). Name another file.") from error
        self._read(path, content)
        self._ends_in_line = not content.endswith(b"\n") and content != b""

    def _read(self, path: Path, content: bytes) -> None:
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                answer = json.loads(line)
                self._answers[answer.pop(KEY)] = answer
            except (ValueError, AttributeError, KeyError, TypeError):
                # A kill or a full disk can cut a line. Its question is asked again.
                if not line.startswith(f'{{"{KEY}"'[: len(line)].encode()):
                    raise ValueError(
                        f"`cache`='{path}' is not a file of answers (line {number}). Name another file or delete "
                        "this one."
                    ) from None

    def _append(self, line: bytes) -> None:
        line = b"\n" * self._ends_in_line + line
        self._ends_in_line = True
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise OSError(
                f"The answers of the judge cannot be written to '{self.path}' ({error.strerror or error}). Earlier "
                "answers are kept there. Free some space and run again."
            ) from error
        self._ends_in_line = False
