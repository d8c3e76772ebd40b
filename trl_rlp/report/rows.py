"""Rows that a run has saved: a dataset, a JSON Lines file, Parquet files or shards."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_from_disk

from trl_rlp.storage.artifacts import DATA
from trl_rlp.storage.data_files import read_rows


Value = TypeVar("Value")


class Rows:
    """
    Rows as dicts, from a dataset or from a list. A list may hold texts that a dataset cannot, such as half surrogates.

    Args:
        source ([`~datasets.Dataset`] or `list[dict]`):
            The rows.
    """

    def __init__(self, source: Dataset | list[dict[str, Any]]):
        self._source = source
        is_list = isinstance(source, list)
        self.names = set().union(*source) if is_list else set(source.column_names)

    def __len__(self) -> int:
        return len(self._source)

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """
        Reads rows.

        Args:
            numbers (`Sequence[int]`):
                Their numbers.

        Returns:
            `list[dict]`: The rows in this order.
        """
        if isinstance(self._source, list):
            return [self._source[number] for number in numbers]
        return self._source.select(numbers).to_list() if len(numbers) else []

    def column(self, name: str) -> list[Any]:
        """
        Reads a column.

        Args:
            name (`str`):
                Its name.

        Returns:
            `list`: One value per row, `None` where a row lacks it.
        """
        if isinstance(self._source, list):
            return [row.get(name) for row in self._source]
        return self._source[name][:]


def explain_damage(path: Path, remedy: str, read: Callable[[], Value]) -> Value:
    """
    Reads a file or folder, and names it in the error if it is damaged.

    Args:
        path (`Path`):
            What is read.
        remedy (`str`):
            Sentence that says what the user can do.
        read (`Callable`):
            Reads it.

    Returns:
        The result of `read`.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return read()
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"'{path}' is damaged ({reason}). {remedy}") from error


_MAKE_AGAIN = "Delete the folder of this stage and run the same command again, or move it away to report the rest."
_WRITE_AGAIN = "Run the command that wrote it again, or move it away to report the rest."


def read_stage_rows(folder: Path) -> Rows | None:
    """
    Reads the dataset of a stage.

    Args:
        folder (`Path`):
            Folder of the stage.

    Returns:
        [`Rows`] or `None`: The rows. `None` if the stage has no dataset.

    Raises:
        ValueError: If the dataset is damaged.
    """
    data = folder / DATA
    if not data.is_dir():
        return None
    return Rows(explain_damage(data, _MAKE_AGAIN, lambda: load_from_disk(str(data))))


def read_file_rows(path: Path) -> Rows | None:
    """
    Reads a JSON Lines file.

    Args:
        path (`Path`):
            The file.

    Returns:
        [`Rows`] or `None`: The rows. `None` if there is no such file.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return None
    return Rows(explain_damage(path, _WRITE_AGAIN, lambda: read_rows(path) if path.stat().st_size else []))


def read_shards(folder: Path) -> Rows | None:
    """
    Reads the finished shards in a folder.

    Args:
        folder (`Path`):
            Folder of shards.

    Returns:
        [`Rows`] or `None`: The rows of all finished shards. `None` if there is no such shard.

    Raises:
        ValueError: If a shard is damaged.
    """
    files = sorted(folder.glob("shard-*.arrow"))
    if not files:
        return None
    read = [explain_damage(file, _WRITE_AGAIN, lambda file=file: Dataset.from_file(str(file))) for file in files]
    return Rows(concatenate_datasets(read))


def read_parquet(folder: Path) -> Rows | None:
    """
    Reads all Parquet files of a folder.

    Args:
        folder (`Path`):
            The folder.

    Returns:
        [`Rows`] or `None`: Their rows. `None` if there is no such file.

    Raises:
        ValueError: If a file is damaged.
    """
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.parquet")):
        rows += explain_damage(file, _WRITE_AGAIN, lambda file=file: read_rows(file))
    return Rows(rows) if rows else None
