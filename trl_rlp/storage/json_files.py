"""JSON and text files that are written completely or not at all."""

import datetime
import json
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors import SafetensorError


def read_json(path: str | Path) -> Any:
    """
    Reads a JSON file.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        The value in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not JSON.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """
    Writes a JSON file, completely or not at all.

    Args:
        path (`str` or `Path`):
            The file. An existing file is replaced.
        value:
            Any value that `json` can write.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """
    Writes a UTF-8 text file, completely or not at all.

    The text first goes to a hidden file in the same folder, which then replaces `path` in one step.

    Args:
        path (`str` or `Path`):
            The file. An existing file is replaced.
        text (`str`):
            The whole text.
    """
    with replace_at_end(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def write_rows(path: str | Path, rows: Dataset) -> None:
    """
    Writes a dataset as JSON Lines, completely or not at all.

    Numbers have all their digits. Dates and times are text in ISO 8601. NaN and infinity become `null`.

    Args:
        path (`str` or `Path`):
            The file. An existing file is replaced.
        rows ([`~datasets.Dataset`]):
            The dataset. Each row becomes one line.
    """
    # `Dataset.to_json` would round numbers to ten decimals, and write dates as milliseconds.
    with replace_at_end(Path(path)) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        for row in rows.with_format(None):
            file.write(json.dumps(replace_nan(row), ensure_ascii=False, default=_write_other) + "\n")


def _write_other(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


@contextmanager
def replace_at_end(path: Path) -> Iterator[Path]:
    """
    Yields the path of a hidden file in the same folder. It replaces `path` after the block, unless the block raises.

    Args:
        path (`Path`):
            The file. An existing file is replaced.

    Yields:
        `Path`: The hidden file, which the block writes.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with name_failed_write(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def name_failed_write(path: str | Path) -> Iterator[None]:
    """
    Adds the path to an error of writing that does not name it, as on a full disk.

    Args:
        path (`str` or `Path`):
            File or folder that is written inside the `with` block.

    Raises:
        OSError: If the block raises an `OSError` without a file name, or an error of safetensors.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"Cannot write '{path}' ({error}).") from error
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def replace_nan(value: Any) -> Any:
    """
    Replaces NaN and infinity by `None`, because JSON has neither.

    Args:
        value:
            Dicts, lists, tuples and plain values, nested to any depth.

    Returns:
        A copy of the value. Tuples become lists.

    Example:

    ```python
    >>> from trl_rlp.storage.json_files import replace_nan

    >>> replace_nan({"error": float("nan"), "margins": (1.0, float("inf"))})
    {'error': None, 'margins': [1.0, None]}

    ```
    """
    if isinstance(value, dict):
        return {key: replace_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
