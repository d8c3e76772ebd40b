"""A cache of NLI labels on disk. With it, an interrupted or repeated run asks the model only about new pairs."""

import os
import sqlite3
from pathlib import Path


# SQLite accepts at least this many parameters in one statement.
_KEYS_PER_STATEMENT = 900


class LabelCache:
    """
    Stores labels under hashed keys in an SQLite file. Several processes may share the file.

    The cache knows nothing about models and texts. The caller puts everything that a label depends on into the key.
    [`NLIEquivalence`] hashes the classifier's weights and the token ids, but not the rule. Entries are never removed.
    Delete the file to empty the cache.

    Args:
        path (`str` or `os.PathLike`):
            File to open or create. Its folder is created too.

    Raises:
        ValueError: If the path is a folder, or the file exists and is not a label cache.
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
                f"`cache`={str(path)!r} is not a label cache ({error}). Name another file or delete this one."
            ) from error

    def find(self, keys: list[bytes]) -> dict[bytes, int]:
        """
        Looks up labels.

        Args:
            keys (`list[bytes]`):
                Keys to look up.

        Returns:
            `dict[bytes, int]`: The label of each key that is in the cache.
        """
        found = {}
        for start in range(0, len(keys), _KEYS_PER_STATEMENT):
            part = keys[start : start + _KEYS_PER_STATEMENT]
            marks = ",".join("?" * len(part))
            found.update(self._connection.execute(f"SELECT key, label FROM labels WHERE key IN ({marks})", part))
        return found

    def store(self, labels: dict[bytes, int]) -> None:
        """
        Writes labels to disk. They survive a crash of the process after this call.

        Args:
            labels (`dict[bytes, int]`):
                Label of each key.
        """
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?)", labels.items())
