"""Splits work into shards. Processes share the shards, and an interrupted run resumes after the last finished one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from trl_rlp.storage.json_files import write_text
from trl_rlp.storage.manifest import claim_folder
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import process_state


MANIFEST = "samples.json"

Record = dict[str, Any]


def cut_shards(rows: list[int], shard_size: int) -> list[list[int]]:
    """
    Splits row numbers into shards.

    Args:
        rows (`list[int]`):
            Row numbers, in the order of the work.
        shard_size (`int`):
            Number of rows in a shard. The last shard may have fewer.

    Returns:
        `list[list[int]]`: Row numbers of each shard.

    Example:

    ```python
    >>> from trl_rlp.storage.shards import cut_shards

    >>> cut_shards([4, 3, 2, 1, 0], shard_size=2)
    [[4, 3], [2, 1], [0]]

    ```
    """
    return [rows[start : start + shard_size] for start in range(0, len(rows), shard_size)]


def work_in_shards(
    shards: list[list[int]],
    work: Callable[[int, list[int], Callable[[int], Any]], list[Record]],
    *,
    description: str,
    unit: str = "prompt",
    output_dir: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    is_final: Callable[[Record], bool] = lambda record: True,
) -> list[Record]:
    """
    Does the work of all shards. Every process gets all records, in the order of the rows.

    Process `i % num_processes` works on shard `i`, so every process must call this function. With `output_dir`, each
    finished shard is saved as a JSON Lines file, and a second call reads this file instead of doing the work again.
    All processes must see the same folder. Without `output_dir`, the processes exchange their records at the end.

    Args:
        shards (`list[list[int]]`):
            Row numbers of each shard. Together they hold every number from 0 to the number of rows - 1 exactly once.
        work (`Callable`):
            Called as `work(index, rows, advance)` with the number and the rows of a shard. It returns one record for
            each row, in the order of `rows`. Records consist of values that `json` can write. It calls
            `advance(count)` whenever `count` more rows are done. If saved records are not final, `rows` holds theirs.
        description (`str`):
            Label of the progress bar. The main process shows the progress of its own shards.
        unit (`str`, *optional*, defaults to `"prompt"`):
            What a row is, for the progress bar.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards. It is created if it does not exist.
        fingerprint (`dict`, *optional*):
            Everything that decides the records, as plain values by name. Required with `output_dir`.
        is_final (`Callable`, *optional*):
            Called with each saved record. It returns whether the record stays. The others are made again. By default,
            all stay.

    Returns:
        `list[dict]`: One record for each row.

    Raises:
        ValueError: If the folder belongs to a run with another fingerprint, holds shards of unknown origin, or holds a
            damaged shard.
        FileNotFoundError: If a shard of another process is not in the folder.
    """
    state = process_state()
    folder = None if output_dir is None else Path(expand_path(output_dir))
    if folder is not None:
        claim_folder(folder, MANIFEST, fingerprint, run_files="shard-*.jsonl")
    own_shards = range(state.process_index, len(shards), state.num_processes)
    total = sum(len(shards[index]) for index in own_shards)
    finished = {}
    with tqdm(total=total, desc=description, unit=unit, disable=not state.is_main_process) as bar:
        for index in own_shards:
            rows = shards[index]
            records = {}
            if folder is not None and _shard_path(folder, index).exists():
                saved = zip(rows, _read_shard(folder, index, rows), strict=True)
                records = {row: record for row, record in saved if is_final(record)}
                bar.update(len(records))
            missing = [row for row in rows if row not in records]
            if missing:
                records |= zip(missing, work(index, missing, bar.update), strict=True)
            finished[index] = [records[row] for row in rows]
            if missing and folder is not None:
                _write_shard(folder, index, rows, finished[index])
    return _order_by_row(shards, _collect_from_processes(shards, finished, folder, state))


def _collect_from_processes(
    shards: list[list[int]], finished: dict[int, list[Record]], folder: Path | None, state: PartialState
) -> dict[int, list[Record]]:
    if state.num_processes == 1:
        return finished
    if folder is None:
        return dict(gather_object(list(finished.items())))
    state.wait_for_everyone()
    others = [index for index in range(len(shards)) if index not in finished]
    return finished | {index: _read_shard(folder, index, shards[index]) for index in others}


def _order_by_row(shards: list[list[int]], finished: dict[int, list[Record]]) -> list[Record]:
    by_row = {
        row: record for index, rows in enumerate(shards) for row, record in zip(rows, finished[index], strict=True)
    }
    return [by_row[row] for row in range(len(by_row))]


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.jsonl"


def _write_shard(folder: Path, index: int, rows: list[int], records: list[Record]) -> None:
    lines = [json.dumps({"row": row, **record}) + "\n" for row, record in zip(rows, records, strict=True)]
    write_text(_shard_path(folder, index), "".join(lines))


def _read_shard(folder: Path, index: int, rows: list[int]) -> list[Record]:
    path = _shard_path(folder, index)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} of another process is missing. `output_dir` must be a folder that all processes share."
        )
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [record.pop("row") for record in records]
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
        found = None
    if found != rows:
        raise ValueError(f"{path} is damaged. Delete it and run again. Only its {len(rows)} rows are computed again.")
    return records
