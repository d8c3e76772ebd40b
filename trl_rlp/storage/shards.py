"""Work in shards: dealt to the processes, written whole or not at all, continued where it stopped, never mixed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from trl_rlp.storage.processes import process_state


MANIFEST = "samples.json"

Record = dict[str, Any]


def cut_shards(rows: list[int], shard_size: int) -> list[list[int]]:
    """
    Cuts rows into shards.

    Args:
        rows (`list[int]`):
            Row numbers, in the order in which they are worked on.
        shard_size (`int`):
            Rows a shard; the last one may have fewer.

    Returns:
        `list[list[int]]`: row numbers of each shard.
    """
    return [rows[start : start + shard_size] for start in range(0, len(rows), shard_size)]


def work_in_shards(
    shards: list[list[int]],
    work: Callable[[int, list[int], Callable[[int], Any]], list[Record]],
    *,
    description: str,
    output_dir: str | Path | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> list[Record]:
    """
    Does the work of all shards and gives the records in the order of the rows, on every process.

    Shard i is done by process i modulo the number of processes, so every process must call this. With `output_dir`
    each finished shard is a JSON-lines file, and a second call reads it instead of doing its work; the folder must be
    one that all processes see. Without it records are exchanged between the processes at the end.

    Args:
        shards (`list[list[int]]`):
            Row numbers of each shard: together 0 to the number of rows, each once.
        work (`Callable`):
            Called as `work(index, rows, advance)` with a shard's number and rows; returns one record a row, in the
            order of `rows`, made of values that `json` can write. Calls `advance(count)` when `count` rows are done.
        description (`str`):
            Name of the progress bar, which the main process shows for its own share.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards; made if it is not there.
        fingerprint (`dict`, *optional*):
            Everything that decides the records, as plain values by name. Needed with `output_dir`.

    Returns:
        `list[dict]`: one record a row.

    Raises:
        ValueError: if the folder holds shards with another fingerprint, or a shard that is damaged.
        FileNotFoundError: if another process's shard is not in the folder.
    """
    state = process_state()
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None:
        _claim(folder, fingerprint, state)
    own = range(state.process_index, len(shards), state.num_processes)
    total = sum(len(shards[index]) for index in own)
    finished = {}
    with tqdm(total=total, desc=description, unit="prompt", disable=not state.is_main_process) as bar:
        for index in own:
            if folder is not None and _path(folder, index).exists():
                finished[index] = _read(folder, index, shards[index])
                bar.update(len(shards[index]))
            else:
                finished[index] = work(index, shards[index], bar.update)
                if folder is not None:
                    _write(folder, index, shards[index], finished[index])
    return _in_order(shards, _from_all_processes(shards, finished, folder, state))


def _from_all_processes(
    shards: list[list[int]], finished: dict[int, list[Record]], folder: Path | None, state: PartialState
) -> dict[int, list[Record]]:
    if state.num_processes == 1:
        return finished
    if folder is None:
        return dict(gather_object(list(finished.items())))
    state.wait_for_everyone()
    others = [index for index in range(len(shards)) if index not in finished]
    return finished | {index: _read(folder, index, shards[index]) for index in others}


def _in_order(shards: list[list[int]], finished: dict[int, list[Record]]) -> list[Record]:
    by_row = {
        row: record for index, rows in enumerate(shards) for row, record in zip(rows, finished[index], strict=True)
    }
    return [by_row[row] for row in range(len(by_row))]


def _claim(folder: Path, fingerprint: dict[str, Any], state: PartialState) -> None:
    """Makes the folder this run's, or checks that it is; the main process looks before any other can write to it."""
    problem = [None]
    if state.is_main_process:
        here = json.loads(json.dumps(fingerprint))  # tuples become lists, as they will be when read back
        problem = [_other_run(folder, here)]
        if problem == [None]:
            folder.mkdir(parents=True, exist_ok=True)
            _write_text(folder / MANIFEST, json.dumps(here, indent=2) + "\n")
    broadcast_object_list(problem)
    if problem != [None]:
        raise ValueError(f"`output_dir` {folder} {problem[0]} Choose another `output_dir`, or delete this one.")


def _other_run(folder: Path, here: dict[str, Any]) -> str | None:
    """What in the folder is not this run's, if anything."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return f"holds shards of unknown origin: it has no {MANIFEST}." if any(folder.glob("shard-*.jsonl")) else None
    try:
        there = dict(json.loads(manifest.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return f"holds shards of unknown origin: its {MANIFEST} is damaged."
    changed = [
        f"`{name}` was {there.get(name)!r} and is {here.get(name)!r}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    return f"holds samples of another run: {', '.join(changed)}." if changed else None


def _path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.jsonl"


def _write(folder: Path, index: int, rows: list[int], records: list[Record]) -> None:
    lines = [json.dumps({"row": row, **record}) + "\n" for row, record in zip(rows, records, strict=True)]
    _write_text(_path(folder, index), "".join(lines))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _read(folder: Path, index: int, rows: list[int]) -> list[Record]:
    path = _path(folder, index)
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
        raise ValueError(f"{path} is damaged. Delete it and run again: only its {len(rows)} rows are made anew.")
    return records
