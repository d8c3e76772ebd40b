"""Labels of NLI pairs on disk, so that an interrupted or repeated run asks the model only what is new."""

import os
import sqlite3
from pathlib import Path


# SQLite accepts at least this many parameters in one statement.
_LOOKUP_SIZE = 900


class LabelCache:
    """
    Keeps labels under hashes in an SQLite file; several processes may share it.

    It knows nothing of models or texts: what makes two questions the same question is for the caller to put into the
    key ([`NLIEquivalence`] hashes the classifier's weights and the token ids, not the rule). It never forgets; delete
    the file to empty it.

    Args:
        path (`str` or `os.PathLike`):
            File to open or create. Its folder is created too.

    Raises:
        ValueError: if the path is that of a folder, or the file exists and is no such cache.
    """

    def __init__(self, path: str | os.PathLike):
        if Path(path).is_dir():
            raise ValueError(f"`cache`={str(path)!r} is a folder. Name a file in it, for example 'labels.sqlite'.")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=60)
        try:
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS labels (key BLOB PRIMARY KEY, label INTEGER) WITHOUT ROWID"
            )
            self._connection.execute("SELECT key, label FROM labels LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"`cache`={str(path)!r} is no label cache ({error}). Name another file or delete it."
            ) from error

    def find(self, keys: list[bytes]) -> dict[bytes, int]:
        """
        Gives the labels that are known.

        Args:
            keys (`list[bytes]`):
                What to look up.

        Returns:
            `dict[bytes, int]`: label of each key that has one.
        """
        found = {}
        for start in range(0, len(keys), _LOOKUP_SIZE):
            part = keys[start : start + _LOOKUP_SIZE]
            marks = ",".join("?" * len(part))
            found.update(self._connection.execute(f"SELECT key, label FROM labels WHERE key IN ({marks})", part))
        return found

    def store(self, labels: dict[bytes, int]) -> None:
        """
        Writes labels to disk; they survive the process from here on.

        Args:
            labels (`dict[bytes, int]`):
                Label of each key.
        """
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?)", labels.items())
