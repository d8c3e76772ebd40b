"""The folder of shards: one Arrow file for each finished shard, and what the processes tell each other."""

import atexit
import logging
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets

from trl_rlp.storage.claims import Claims
from trl_rlp.storage.fingerprints import value_fingerprint
from trl_rlp.storage.json_files import read_json, replace_at_end, write_json
from trl_rlp.storage.manifest import claim_folder
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import process_state, run_on_main, share_work


logger = logging.getLogger(__name__)

MANIFEST = "samples.json"
SHARED_FOLDER_SECONDS = 60.0
"""How long a process looks for a file that the main process has written, until the folder counts as another one."""
_ROWS = b"trl_rlp_rows"
_OUTPUT_DIR_REMEDY = "Pass an `output_dir` on a file system that all hosts share."
_TMPDIR_REMEDY = "Set the environment variable TMPDIR to a folder on a file system that all hosts share."

Record = dict[str, Any]


class ShardFolder:
    """
    The folder of the shards of one call.

    Args:
        path (`Path`):
            The folder.
        run (`str`):
            Name of this call, which no other call has. It is the same on all processes.
        shards (`Sequence[Sequence[int]]`):
            Row numbers of each shard.
        features ([`~datasets.Features`], *optional*):
            Columns of the result and their types.
        is_final (`Callable`, *optional*):
            Called with each row of a saved result. It returns whether the row stays.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        shards: Sequence[Sequence[int]],
        features: Features | None,
        is_final: Callable[[Record], bool] | None,
    ):
        self.path = path
        self.shards = shards
        self.features = features
        self._is_final = is_final
        self._error_path = path / f".error-{run}.json"

    def is_finished(self, index: int) -> bool:
        """
        Checks whether a shard is finished.

        Args:
            index (`int`):
                Number of the shard.

        Returns:
            `bool`.
        """
        return _shard_path(self.path, index).exists()

    def list_finished(self) -> list[int]:
        """
        Lists the finished shards.

        Returns:
            `list[int]`: Numbers of the shards, in order.

        Raises:
            RuntimeError: If another process stopped with an error.
        """
        names = set(os.listdir(self.path))
        if self._error_path.name in names:
            raise RuntimeError(read_json(self._error_path))
        return [index for index in range(len(self.shards)) if _shard_name(index) in names]

    def read_final_rows(self, index: int) -> dict[int, Record]:
        """
        Reads the final rows of a shard that holds other rows too.

        Args:
            index (`int`):
                Number of the shard.

        Returns:
            `dict[int, dict]`: The final rows by row number. Empty if nothing of the shard has been saved.
        """
        path = _retry_path(self.path, index)
        if self._is_final is None or not path.exists():
            return {}
        saved = zip(self.shards[index], Dataset.from_file(str(path)), strict=True)
        return {row: record for row, record in saved if self._is_final(record)}

    def write(self, index: int, columns: dict[str, list], rows: Sequence[int], saved: dict[int, Record]) -> None:
        """
        Writes a finished shard, completely or not at all.

        Args:
            index (`int`):
                Number of the shard.
            columns (`dict[str, list]`):
                Result of the work.
            rows (`Sequence[int]`):
                Row numbers that the work got.
            saved (`dict[int, dict]`):
                Result of [`read_final_rows`].
        """
        if saved:
            made = {row: {name: values[at] for name, values in columns.items()} for at, row in enumerate(rows)}
            records = [saved[row] if row in saved else made[row] for row in self.shards[index]]
            columns = {name: [record[name] for record in records] for name in records[0]}
        table = Dataset.from_dict(columns, features=self.features).data.table
        table = table.replace_schema_metadata({**table.schema.metadata, _ROWS: self._describe(index, len(table))})
        with replace_at_end(_shard_path(self.path, index)) as partial:
            with pa.ipc.new_stream(str(partial), table.schema) as file:
                file.write_table(table)
        _retry_path(self.path, index).unlink(missing_ok=True)

    def load(self) -> Dataset:
        """
        Opens the finished shards as one dataset.

        Returns:
            [`~datasets.Dataset`]: The results of all shards, memory-mapped, in the order of the rows.

        Raises:
            ValueError: If the shards change the order of the rows, and a result has not one row for each row.
        """
        if not self.shards:
            return Dataset.from_dict({name: [] for name in self.features or {}}, features=self.features)
        results = [Dataset.from_file(str(_shard_path(self.path, index))) for index in range(len(self.shards))]
        result = concatenate_datasets(results)
        rows = np.concatenate([np.asarray(shard, dtype=np.int64) for shard in self.shards])
        if np.array_equal(rows, np.arange(len(rows))):
            return result
        if [len(part) for part in results] != [len(shard) for shard in self.shards]:
            raise ValueError("`shards` change the order of the rows, so `work` must return one row for each row.")
        return result.select(np.argsort(rows))

    @contextmanager
    def report_failure(self, description: str) -> Iterator[None]:
        """
        Tells the other processes about an error inside a `with` block, so that they stop too.

        Args:
            description (`str`):
                What the block does, for the message.

        Raises:
            BaseException: The error of the block.
        """
        try:
            yield
        except BaseException as error:
            state = process_state()
            if state.num_processes > 1 and not self._error_path.exists():
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                message = f"{description} stopped, because process {state.process_index} stopped with {reason}"
                with suppress(OSError):  # the error may be a full disk
                    write_json(self._error_path, message)
            raise

    def prepare(self) -> None:
        """
        Removes what an interrupted run has left, and finds the shards that have to be made again.

        Raises:
            ValueError: If a shard is damaged, or a process of another run works in the folder.
        """
        claims = Claims.clear(self.path)
        for path in [*self.path.glob(".error-*.json"), *self.path.glob(".run-*")]:
            path.unlink(missing_ok=True)
        if claims:
            logger.warning(f"{claims} shard(s) in {self.path} were claimed by a run that ended. They are free again.")
        for index in self.list_finished():
            path = _shard_path(self.path, index)
            self._check(index, path)
            if self._is_final is not None and not all(map(self._is_final, Dataset.from_file(str(path)))):
                path.replace(_retry_path(self.path, index))

    def _check(self, index: int, path: Path) -> None:
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                found = reader.schema.metadata[_ROWS]
                is_whole = found == self._describe(index, reader.read_all().num_rows)
        except (pa.ArrowException, OSError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            size = len(self.shards[index])
            raise ValueError(f"{path} is damaged. Delete it and run again. Only its {size} rows are computed again.")

    def _describe(self, index: int, num_rows: int) -> bytes:
        return f"{num_rows} rows from {value_fingerprint(list(self.shards[index]))}".encode()


def open_shard_folder(
    output_dir: str | Path | None,
    fingerprint: dict[str, Any] | None,
    shards: Sequence[Sequence[int]],
    features: Features | None,
    is_final: Callable[[Record], bool] | None,
) -> ShardFolder:
    """
    Opens the folder of shards on all processes. Each process must call this function.

    Args:
        output_dir (`str` or `Path`, *optional*):
            The folder. It is created if it does not exist. `None` stands for a temporary folder.
        fingerprint (`dict`, *optional*):
            Everything that decides the result. Required with `output_dir`.
        shards (`Sequence[Sequence[int]]`):
            Row numbers of each shard.
        features ([`~datasets.Features`], *optional*):
            Columns of the result and their types.
        is_final (`Callable`, *optional*):
            Called with each row of a saved result. It returns whether the row stays.

    Returns:
        [`ShardFolder`]: The folder.

    Raises:
        ValueError: If the folder belongs to another run or holds a damaged shard, if another run works in it, or if
            the processes see different folders.
    """
    state = process_state()
    if output_dir is None:
        path = _make_temporary_folder()
    else:
        path = Path(expand_path(output_dir))
        claim_folder(path, MANIFEST, fingerprint or {}, run_files="shard-*.arrow")
    # Not a collective of training, because on a slow disk many shards take longer than its time limit.
    run = run_on_main(lambda: _start(ShardFolder(path, "", shards, features, is_final)))
    if state.num_processes > 1:
        _require_shared(path, path / f".run-{run}", is_temporary=output_dir is None)
    return ShardFolder(path, run, shards, features, is_final)


def require_shared_temporary_folder() -> None:
    """
    Checks that all processes see the temporary folders of the main process, before work that will need one. Each
    process must call this function.

    Raises:
        ValueError: If a process on another host does not see them.
    """
    if process_state().num_processes > 1:
        open_shard_folder(None, None, [], None, None)


def _start(folder: ShardFolder) -> str:
    """Prepares the folder. Returns the name of the run."""
    run = uuid.uuid4().hex[:12]
    folder.prepare()
    if process_state().num_processes > 1:
        (folder.path / f".run-{run}").touch()
    return run


def _make_temporary_folder() -> Path:
    """Makes a folder that the main process removes when the program ends. Memory-mapped files live on until then."""
    path = run_on_main(lambda: tempfile.mkdtemp(prefix="trl_rlp-"))
    if process_state().is_main_process:
        atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def _require_shared(folder: Path, sign: Path, is_temporary: bool) -> None:
    """Checks that all processes see the file that the main process has written, and removes it."""
    deadline = time.monotonic() + SHARED_FOLDER_SECONDS
    while not (is_seen := sign.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    state = process_state()
    own = None if is_seen else f"process {state.process_index} on {socket.gethostname()}"
    blind = [name for name in share_work(range(state.num_processes), lambda _: [own]) if name is not None]
    if state.is_main_process:
        sign.unlink(missing_ok=True)
    if blind:
        raise ValueError(
            f"{folder} is not the same folder on all processes: {', '.join(blind)} cannot see what the main process "
            f"wrote there. {_TMPDIR_REMEDY if is_temporary else _OUTPUT_DIR_REMEDY}"
        )


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.arrow"


def _shard_path(folder: Path, index: int) -> Path:
    return folder / _shard_name(index)


def _retry_path(folder: Path, index: int) -> Path:
    return folder / f"retry-{index:05d}.arrow"
