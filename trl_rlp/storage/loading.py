"""One way to name a data set: a JSON-lines file, a folder written by `Dataset.save_to_disk`, or a name on the Hub."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk


def load_rows(name: str, split: str = "train") -> Dataset:
    """
    Loads a data set by the kind of name it has.

    Args:
        name (`str`):
            Path of a `.json` or `.jsonl` file, path of a folder written by `Dataset.save_to_disk`, or a data set's
            name on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub data set. Local files have one split and ignore it.

    Returns:
        `datasets.Dataset`.

    Raises:
        FileNotFoundError: if the name looks like a local path and nothing is there.
        ValueError: if the file is empty or holds something else.

    Example:

    ```python
    >>> from trl_rlp.storage.loading import load_rows

    >>> load_rows("no_such_file.jsonl")
    Traceback (most recent call last):
        ...
    FileNotFoundError: No data set at 'no_such_file.jsonl'. Pass a JSON-lines file, a folder of `save_to_disk`, or a \
Hub name.
    ```
    """
    path = Path(name)
    if path.is_file():
        columns = _columns(path)
        try:
            return Dataset.from_dict(columns)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The data set at '{path}' has several kinds of values in one column ({error}). Write one kind a "
                "column, for example messages for every prompt."
            ) from error
    if path.is_dir():
        return load_from_disk(str(path))
    if path.suffix in {".json", ".jsonl"} or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"No data set at '{name}'. Pass a JSON-lines file, a folder of `save_to_disk`, or a Hub name."
        )
    return load_dataset(name, split=split)


def _columns(path: Path) -> dict[str, list[Any]]:
    """Read as JSON says: `load_dataset` would make dates of texts that look like one."""
    text = path.read_text(encoding="utf-8")
    try:
        is_array = text.lstrip().startswith("[")
        rows = json.loads(text) if is_array else [json.loads(row) for row in text.split("\n") if row.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"The data set at '{path}' is not JSON ({error}). Write one JSON object a line.") from error
    if not rows:
        raise ValueError(f"The data set at '{path}' is empty. Write one JSON object a line.")
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"The data set at '{path}' has rows that are no objects. Write one JSON object a line.")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
