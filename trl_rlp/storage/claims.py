"""Claims say which process works on a shard, or in a run folder. A claim whose process has died is taken over."""

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from trl_rlp.storage.json_files import name_failed_write, read_json, write_json


logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
"""How often a process renews its claims."""
SILENT_SECONDS = 300.0
"""A process on another host counts as dead if it has not renewed a claim for so long."""


class Claims:
    """
    The shards that the processes of a run work on. Each claim is a file in the folder of the shards.

    A run folder has one claim, number 0, of the program that works on a stage in it.

    The first process that creates the file holds the claim. Inside a `with` block, a thread renews the modification
    time of the held files. All claims are released at the end of the block.

    Two processes can both take over the claim of a third one, if they do so at the same moment. Both then make the
    same shard, and one replaces the file of the other by the same content.

    Args:
        folder (`Path`):
            The folder. It must exist.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from trl_rlp.storage.claims import Claims

    >>> with tempfile.TemporaryDirectory() as folder, Claims(Path(folder)) as claims:
    ...     claims.take(0), claims.take(0)
    (True, False)

    ```
    """

    def __init__(self, folder: Path):
        self.folder = folder
        started = psutil.Process().create_time()
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        self._held: set[int] = set()
        self._beats: dict[int, tuple[int, float]] = {}
        self._ended = threading.Event()

    def __enter__(self) -> "Claims":
        threading.Thread(target=self._beat, name="heartbeat of claims", daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        for index in list(self._held):
            self.release(index)

    @staticmethod
    def clear(folder: Path) -> int:
        """
        Removes the claims of an earlier run that was interrupted.

        Args:
            folder (`Path`):
                The folder.

        Returns:
            `int`: Number of removed claims.

        Raises:
            ValueError: If another process of this host holds a claim and is alive. A process of another
                host counts as ended.
        """
        paths = list(folder.glob(".claim-*"))
        for path in paths:
            owner = _read_owner(path)
            is_local = owner.get("host") == socket.gethostname() and owner["pid"] != os.getpid()
            if is_local and _is_alive(owner["pid"], owner["started"]):
                raise ValueError(
                    f"Process {owner['pid']} of another run works in {folder}. Wait until it ends, or end it, or "
                    "choose another `output_dir`."
                )
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def take(self, index: int) -> bool:
        """
        Claims a shard, if no process holds it.

        Args:
            index (`int`):
                Number of the shard.

        Returns:
            `bool`: Whether this call claimed it.
        """
        path = self._path(index)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        self._held.add(index)
        with name_failed_write(path), os.fdopen(file, "w", encoding="utf-8") as text:
            json.dump(self._owner, text)
        return True

    def take_over(self, index: int) -> bool:
        """
        Claims a shard whose process has died, and logs it.

        A process of this host has died if there is no process with its number and its start time. A process of another
        host counts as dead if it has not renewed the claim for [`SILENT_SECONDS`], by the clock of this process.

        Args:
            index (`int`):
                Number of the shard. A process holds it, or did so a moment ago.

        Returns:
            `bool`: Whether this call claimed it.
        """
        path = self._path(index)
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        owner = _read_owner(path)
        if not self._has_died(index, owner, beat):
            return False
        name = f"process {owner.get('pid')} on {owner.get('host')}"
        logger.warning(f"{name} died before it finished shard {index}. This process takes the shard over.")
        write_json(path, self._owner)
        self._held.add(index)
        return True

    def is_own(self, index: int) -> bool:
        """
        Checks whether this process holds a claim, also if another object took it.

        Args:
            index (`int`):
                Number of the claim.

        Returns:
            `bool`.
        """
        return _read_owner(self._path(index)) == self._owner

    def release(self, index: int) -> None:
        """
        Gives a claim up. A claim that another process has taken over is left to it.

        Args:
            index (`int`):
                Number of a shard that this object holds.
        """
        self._held.discard(index)
        if _read_owner(self._path(index)) in (self._owner, {}):  # empty if it could not be written
            self._path(index).unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self.folder / f".claim-{index:05d}"

    def _has_died(self, index: int, owner: dict[str, Any], beat: int) -> bool:
        if owner.get("host") == self._owner["host"]:
            return not _is_alive(owner["pid"], owner["started"])
        last_beat, seen_at = self._beats.get(index, (None, 0.0))
        if last_beat != beat:
            self._beats[index] = beat, time.monotonic()
            return False
        return time.monotonic() - seen_at > SILENT_SECONDS

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            for index in list(self._held):
                try:
                    os.utime(self._path(index))
                except OSError:
                    logger.debug("claim %d was not renewed", index)  # released or taken over


def _read_owner(path: Path) -> dict[str, Any]:
    """Reads who holds a claim. Empty if the file is being written, or is gone."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return {}


def _is_alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
