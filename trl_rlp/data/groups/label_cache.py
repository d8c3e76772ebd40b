"""A cache of NLI labels on disk. With it, an interrupted or repeated run asks the model only about new pairs."""

import os
import sqlite3
from pathlib import Path

from transformers.utils import logging

from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import list_process_files


logger = logging.get_logger(__name__)


# SQLite accepts at least this many parameters in one statement.
_KEYS_PER_STATEMENT = 900

# How long to wait for another process that writes.
_LOCK_SECONDS = 60


class LabelCache:
    """
    Stores labels under hashed keys in SQLite files. It reads the files of all processes of `accelerate launch`, and
    each process writes its own: the main process `path`, process 1 `path` with `.1` at the end, and so on.

    The cache knows nothing about models and texts. The caller puts everything that a label depends on into the key.
    [`NLIEquivalence`] hashes the classifier's weights and the token ids, but not the rule. Entries are never removed.
    Delete the files to empty the cache.

    A file that cannot be opened is an error, because that happens before any work. A file that fails later (a full
    disk, a lock, damage) does not stop the run. A warning is logged once, and the run goes on without it: after a
    failed write it still reads, and after a failed read it does neither.

    Args:
        path (`str` or `os.PathLike`):
            File to open or create. Its folder is created too.

    Raises:
        OSError: If the file cannot be opened or created, for example on a full disk.
        ValueError: If the path is a folder, or the file exists and is not a label cache.
    """

    def __init__(self, path: str | os.PathLike):
        path = expand_path(path)
        if Path(path).is_dir():
            raise ValueError(f"`cache`={str(path)!r} is a folder. Name a file in it, for example 'labels.sqlite'.")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._can_read = self._can_write = True
        self._connection, *self._others = [_open(str(file)) for file in list_process_files(path)]

    def find(self, keys: list[bytes]) -> dict[bytes, int]:
        """
        Looks up labels.

        Args:
            keys (`list[bytes]`):
                Keys to look up.

        Returns:
            `dict[bytes, int]`: The label of each key that is in the cache. Empty if the file cannot be read.
        """
        found: dict[bytes, int] = {}
        if self._can_read:
            try:
                for connection in (self._connection, *self._others):
                    found |= _select(connection, [key for key in keys if key not in found])
            except sqlite3.DatabaseError as error:
                self._can_read = self._can_write = False
                self._warn("read", error)
        return found

    def store(self, labels: dict[bytes, int]) -> None:
        """
        Writes labels to disk. They survive a crash of the process after this call. Does nothing if the file cannot be
        written.

        Args:
            labels (`dict[bytes, int]`):
                Label of each key.
        """
        if not self._can_write:
            return
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?)", labels.items())
        except sqlite3.DatabaseError as error:
            self._can_write = False
            self._warn("written", error)

    def _warn(self, verb: str, error: sqlite3.DatabaseError) -> None:
        logger.warning(
            f"The label cache {self._path!r} cannot be {verb} ({error}). The run goes on and stores no more labels. "
            "Make room, or pass another file as `cache`, before the next run."
        )


def _open(path: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=_LOCK_SECONDS)
        connection.execute("CREATE TABLE IF NOT EXISTS labels (key BLOB PRIMARY KEY, label INTEGER) WITHOUT ROWID")
        connection.execute("SELECT key, label FROM labels LIMIT 1")
    except sqlite3.OperationalError as error:
        if "no such column" not in str(error):
            raise OSError(
                f"`cache`={path!r} cannot be used ({error}). Check that the disk has room and that no other "
                "program locks the file, or name another file."
            ) from error
        raise ValueError(_describe_other_file(path, error)) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(_describe_other_file(path, error)) from error
    return connection


def _select(connection: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for start in range(0, len(keys), _KEYS_PER_STATEMENT):
        part = keys[start : start + _KEYS_PER_STATEMENT]
        marks = ",".join("?" * len(part))
        found.update(connection.execute(f"SELECT key, label FROM labels WHERE key IN ({marks})", part))
    return found


def _describe_other_file(path: str, error: sqlite3.DatabaseError) -> str:
    return f"`cache`={path!r} is not a label cache ({error}). Name another file or delete this one."
