"""Loads a dataset from a JSON Lines file, a folder written by `Dataset.save_to_disk`, or the Hub."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk


def load_rows(name: str, split: str = "train") -> Dataset:
    """
    Loads a dataset from a local file, a local folder or the Hub.

    Args:
        name (`str`):
            Path of a `.json` or `.jsonl` file, path of a folder written by `Dataset.save_to_disk`, or name of a
            dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset. Local data has one split and ignores it.

    Returns:
        `datasets.Dataset`: The rows. Keys that are missing in a row are `None`.

    Raises:
        FileNotFoundError: If the name looks like a local path that does not exist.
        ValueError: If the file is empty, is not JSON, or its rows are not a table.

    Example:

    ```python
    >>> from trl_rlp.storage.loading import load_rows

    >>> load_rows("no_such_file.jsonl")
    Traceback (most recent call last):
        ...
    FileNotFoundError: No dataset at 'no_such_file.jsonl'. Pass a JSON Lines file, a folder of `save_to_disk`, or a \
Hub name.

    ```
    """
    path = Path(name)
    if path.is_file():
        columns = _read_columns(path)
        try:
            return Dataset.from_dict(columns)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The dataset at '{path}' has several kinds of values in one column ({error}). Write one kind per "
                "column, for example messages for every prompt."
            ) from error
    if path.is_dir():
        return load_from_disk(str(path))
    if path.suffix in {".json", ".jsonl"} or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"No dataset at '{name}'. Pass a JSON Lines file, a folder of `save_to_disk`, or a Hub name."
        )
    return load_dataset(name, split=split)


def _read_columns(path: Path) -> dict[str, list[Any]]:
    """Reads a JSON file without `load_dataset`, which would convert text that looks like a date into a date."""
    text = path.read_text(encoding="utf-8")
    try:
        is_array = text.lstrip().startswith("[")
        rows = json.loads(text) if is_array else [json.loads(row) for row in text.split("\n") if row.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"The dataset at '{path}' is not JSON ({error}). Write one JSON object per line.") from error
    if not rows:
        raise ValueError(f"The dataset at '{path}' is empty. Write one JSON object per line.")
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"The dataset at '{path}' has rows that are not objects. Write one JSON object per line.")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
