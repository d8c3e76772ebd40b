"""Splits work into shards. Processes share the shards, and an interrupted run resumes after the last finished one."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features
from tqdm.auto import tqdm

from trl_rlp.storage.claims import Claims
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.shard_folder import Record, ShardFolder, open_shard_folder


POLL_SECONDS = 0.5
"""Time between two looks at a folder in which other processes finish shards."""

MAX_SHARDS = 1000
"""Number of shards without a size of the user. Each file of a memory-mapped dataset takes about 20 kB of memory."""

Columns = dict[str, list]


def choose_shard_size(num_rows: int, smallest: int) -> int:
    """
    Chooses the size of shards, if the user has not set it.

    Args:
        num_rows (`int`):
            Number of rows.
        smallest (`int`):
            Smallest size. Small shards share the work evenly and lose little of it.

    Returns:
        `int`: Number of rows in a shard, so that there are at most [`MAX_SHARDS`].

    Example:

    ```python
    >>> from trl_rlp.storage.shards import choose_shard_size

    >>> choose_shard_size(20_000, smallest=256), choose_shard_size(1_000_000, smallest=256)
    (256, 1000)

    ```
    """
    return max(smallest, -(-num_rows // MAX_SHARDS))


def map_shards(
    rows: Dataset,
    work: Callable[[int, Columns, Callable[[int], Any]], Columns],
    *,
    description: str,
    unit: str = "prompt",
    shards: Sequence[Sequence[int]] | None = None,
    shard_size: int = 256,
    at_once: int = 1,
    output_dir: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    features: Features | None = None,
    is_final: Callable[[Record], bool] | None = None,
) -> Dataset:
    """
    Does work on all shards of a dataset, and returns the results in the order of the rows.

    Each finished shard is one Arrow file in `output_dir`. A second call reads this file instead of doing the work
    again. Under `accelerate launch`, every process must call this function. A process takes the next free shard when
    it has finished one. At the end it waits for the other processes by looking at the folder, and it takes over the
    shards of a process that died. The result does not depend on the number of processes, if the work on a shard
    depends on its rows and its number only.

    Args:
        rows ([`~datasets.Dataset`]):
            The rows to work on, the same on all processes.
        work (`Callable`):
            Called as `work(index, batch, advance)` with the number of a shard and the columns of its rows. It returns
            the columns of the result, with any number of rows. It calls `advance(count)` whenever `count` more rows
            are done. If saved results are not final, `batch` holds only their rows.
        description (`str`):
            Label of the progress bar, which the main process shows for the work of all processes.
        unit (`str`, *optional*, defaults to `"prompt"`):
            What a row is, for the progress bar.
        shards (`Sequence[Sequence[int]]`, *optional*):
            Row numbers of each shard. Together they hold every row exactly once, in any order. If they change the
            order, the work must return one row for each row. By default, each shard has the next `shard_size` rows.
        shard_size (`int`, *optional*, defaults to `256`):
            Number of rows in a shard without `shards`. The last shard may have fewer.
        at_once (`int`, *optional*, defaults to `1`):
            Number of shards that each process works on at the same time, each in its own thread.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards, which all processes see. It is created if it does not exist. Without it, the
            shards are in a temporary folder until the program ends.
        fingerprint (`dict`, *optional*):
            Everything that decides the result, as plain values by name. Required with `output_dir`.
        features ([`~datasets.Features`], *optional*):
            Columns of the result and their types. By default, they are derived from the values.
        is_final (`Callable`, *optional*):
            Called with each row of a saved result. It returns whether the row stays. The others are made again. The
            work must then return one row for each row. By default, all stay.

    Returns:
        [`~datasets.Dataset`]: The results, memory-mapped, in the order of the rows.

    Raises:
        ValueError: If the folder belongs to a run with another fingerprint, holds shards of unknown origin or a
            damaged shard, is in use by another run, or is not the same folder on all processes.
        RuntimeError: If another process stopped with an error.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_rlp.storage.shards import map_shards

    >>> def square(index, batch, advance):
    ...     advance(len(batch["x"]))
    ...     return {"square": [x**2 for x in batch["x"]]}

    >>> map_shards(Dataset.from_dict({"x": [1, 2, 3]}), square, description="Squaring", shard_size=2)["square"][:]
    [1, 4, 9]

    ```
    """
    if shards is None:
        shards = [range(start, min(start + shard_size, len(rows))) for start in range(0, len(rows), shard_size)]
    folder = open_shard_folder(output_dir, fingerprint, shards, features, is_final)
    is_shown = process_state().is_main_process
    with (
        Claims(folder.path) as claims,
        tqdm(total=len(rows), desc=description, unit=unit, disable=not is_shown) as bar,
        folder.report_failure(description),
    ):
        _Job(rows.with_format(None), work, folder, claims, bar).run(at_once)
    return folder.load()


class _Job:
    """The work of one process: it takes free shards until all shards are finished."""

    def __init__(self, rows: Dataset, work: Callable, folder: ShardFolder, claims: Claims, bar: tqdm):
        self.rows = rows
        self.work = work
        self.folder = folder
        self.claims = claims
        self.bar = bar
        self.missing = dict.fromkeys(range(len(folder.shards)))
        self.done_in_shard: dict[int, int] = {}
        self.looked_at = float("-inf")
        self.error: BaseException | None = None
        self.lock = threading.Condition()

    def run(self, at_once: int) -> None:
        if at_once == 1:
            self._work_until_finished()
        else:
            threads = [threading.Thread(target=self._work_in_thread, daemon=True) for _ in range(at_once)]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException as error:
                self.error = error
                raise
        if self.error is not None:
            raise self.error

    def _work_in_thread(self) -> None:
        try:
            self._work_until_finished()
        except BaseException as error:
            self.error = self.error or error

    def _work_until_finished(self) -> None:
        while self.error is None:
            index = self._take_shard()
            if index is not None:
                self._work_on(index)
            elif not self._wait():
                return

    def _take_shard(self) -> int | None:
        """Claims a free shard. If there is none, it claims one whose process has died."""
        with self.lock:
            self._look_at_folder()
            for take in (self.claims.take, self.claims.take_over):
                for index in list(self.missing):
                    if not take(index):
                        continue
                    if not self.folder.is_finished(index):
                        return index
                    self.claims.release(index)  # its process finished it after the last look
                    self._count_finished([index])
        return None

    def _wait(self) -> bool:
        """Waits for another thread or process. Returns False if all shards are finished."""
        with self.lock:
            if self.missing:
                self.lock.wait(POLL_SECONDS)
            return bool(self.missing)

    def _look_at_folder(self) -> None:
        if time.monotonic() - self.looked_at >= POLL_SECONDS:
            self._count_finished(self.folder.list_finished())
            self.looked_at = time.monotonic()

    def _work_on(self, index: int) -> None:
        shard = self.folder.shards[index]
        saved = self.folder.read_final_rows(index)
        missing = [row for row in shard if row not in saved] if saved else shard  # a range is read faster than a list

        def advance(count: int) -> None:
            with self.lock:
                if index in self.missing:  # otherwise another process has finished the shard, and it is counted
                    self.done_in_shard[index] += count
                    self.bar.update(count)

        self.done_in_shard[index] = 0
        advance(len(saved))
        columns = self.work(index, self._read(missing), advance) if missing else {}
        self.folder.write(index, columns, missing, saved)
        with self.lock:
            self.claims.release(index)
            self._count_finished([index])

    def _read(self, rows: list[int]) -> Columns:
        is_range = rows[-1] - rows[0] == len(rows) - 1 and rows == sorted(rows)
        return self.rows[rows[0] : rows[-1] + 1] if is_range else self.rows[rows]  # a slice is faster

    def _count_finished(self, indices: Sequence[int]) -> None:
        with self.lock:
            for index in indices:
                if index in self.missing:
                    del self.missing[index]
                    self.bar.update(len(self.folder.shards[index]) - self.done_in_shard.pop(index, 0))
            self.lock.notify_all()
