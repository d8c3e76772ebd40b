"""Loads a dataset from a file, a folder written by `save_to_disk`, or the Hub."""

import os
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from trl_rlp.storage.data_files import looks_like_data_file, read_dataset
from trl_rlp.storage.paths import expand_path


REMEDY = "Pass a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`, or a Hub name."


def load_rows(name: str | os.PathLike, split: str = "train") -> Dataset:
    """
    Loads a dataset from a local file, a local folder or the Hub.

    Files are JSON Lines, JSON (a list of objects), CSV, TSV, Parquet or Arrow files. They may be compressed (`.gz`,
    `.bz2`, `.xz`, `.zst` or `.zip` with one file). Text stays text, also if it looks like a date. All cells of CSV and
    TSV files are text.

    Args:
        name (`str` or `Path`):
            Path of a file, path of a folder written by `save_to_disk`, or name of a dataset on the Hub. A leading `~`
            is the home folder.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset or of a saved `DatasetDict`. Other local data has one split and ignores it.

    Returns:
        `datasets.Dataset`: The rows. Keys that are missing in a row, and empty cells of CSV files, are `None`.

    Raises:
        FileNotFoundError: If there is no such dataset, or the folder is not a saved dataset.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the file is empty, damaged or in another format, its rows are not a table, or the folder has no
            such split.

    Example:

    ```python
    >>> from trl_rlp.storage.loading import load_rows

    >>> load_rows("no_such_file.jsonl")
    Traceback (most recent call last):
        ...
    FileNotFoundError: No dataset at 'no_such_file.jsonl'. Pass a JSON Lines, CSV or Parquet file, a folder of \
`save_to_disk`, or a Hub name.

    ```
    """
    is_path = isinstance(name, os.PathLike)
    name = expand_path(name)
    path = Path(name)
    if path.is_file():
        return read_dataset(path)
    if path.is_dir():
        return _load_folder(path, split)
    if is_path or looks_like_data_file(name) or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"No dataset at '{name}'. {REMEDY}")
    try:
        return load_dataset(name, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        raise type(error)(f"No dataset could be loaded from '{name}'. {REMEDY} ({error})") from error


def _load_folder(path: Path, split: str) -> Dataset:
    try:
        dataset = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The folder '{path}' was not written by `save_to_disk`. {REMEDY}") from error
    if not isinstance(dataset, DatasetDict):
        return dataset
    if split not in dataset:
        raise ValueError(
            f"The folder '{path}' has the splits {list(dataset)}, but no split {split!r}. Pass another split, or save "
            "one split with `save_to_disk`."
        )
    return dataset[split]
