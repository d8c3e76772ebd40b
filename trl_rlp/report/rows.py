"""Rows that a run has saved: a dataset, a JSON Lines file, Parquet files or shards."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from pydantic import BaseModel

from trl_rlp.data.hidden_characters import show_hidden
from trl_rlp.report.shapes import field_shape, require_shape
from trl_rlp.storage.artifacts import DATA
from trl_rlp.storage.data_files import read_rows
from trl_rlp.storage.json_files import read_json


Value = TypeVar("Value")


class Rows:
    """
    Rows as dicts, from a dataset or from a list. A list may hold texts that a dataset cannot, such as half surrogates.

    Rows are checked when they are read, so that the rows of a large dataset stay on disk.

    Args:
        source ([`~datasets.Dataset`] or `list[dict]`):
            The rows.
        shape (`type[BaseModel]`, *optional*, defaults to `BaseModel`):
            Shape of a row.
        path (`Path`, *optional*):
            File or folder of the rows, for error messages.
        remedy (`str`, *optional*, defaults to `""`):
            Sentence that says what the user can do if it is damaged.
    """

    def __init__(
        self,
        source: Dataset | list[dict[str, Any]],
        shape: type[BaseModel] = BaseModel,
        path: Path = Path(),
        remedy: str = "",
    ):
        self._source, self._shape, self._path, self._remedy = source, shape, path, remedy
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

        Raises:
            ValueError: If a row is damaged.
        """
        return explain_damage(self._path, self._remedy, lambda: self._take(numbers))

    def _take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        if isinstance(self._source, list):
            rows = [self._source[number] for number in numbers]
        else:
            rows = self._source.select(numbers).to_list() if len(numbers) else []
        _require_rows(rows, numbers, self._shape)
        return rows

    def column(self, name: str) -> list[Any]:
        """
        Reads a column.

        Args:
            name (`str`):
                Its name.

        Returns:
            `list`: One value per row, `None` where a row lacks it.

        Raises:
            ValueError: If a value is damaged.
        """
        return explain_damage(self._path, self._remedy, lambda: self._read_column(name))

    def _read_column(self, name: str) -> list[Any]:
        if isinstance(self._source, list):
            values = [row.get(name) for row in self._source]
        else:
            values = self._source[name][:]
        _require_rows(values, range(len(values)), field_shape(self._shape, name), name)
        return values

    def has_shape(self, name: str, shape: type[BaseModel]) -> bool:
        """
        Checks whether all values of a column have a shape, for a column that a user may have written.

        Args:
            name (`str`):
                Name of the column.
            shape (`type[BaseModel]`):
                Shape of a row that has this column.

        Returns:
            `bool`.
        """
        values = self.column(name)
        try:
            _require_rows(values, range(len(values)), field_shape(shape, name), name)
        except ValueError:
            return False
        return True

    def without(self, names: Collection[str]) -> "Rows":
        """
        Leaves out columns.

        Args:
            names (`Collection[str]`):
                Their names.

        Returns:
            [`Rows`]: The same rows.
        """
        if isinstance(self._source, list):
            source = [{name: value for name, value in row.items() if name not in names} for row in self._source]
        else:
            source = self._source.remove_columns([name for name in self._source.column_names if name in names])
        return Rows(source, self._shape, self._path, self._remedy)

    def describe_damage(self, reason: str) -> ValueError:
        """
        Describes damage that shows only beside other files.

        Args:
            reason (`str`):
                What is wrong.

        Returns:
            `ValueError`: The error, with the path and the remedy.
        """
        return ValueError(f"'{self._path}' is damaged ({reason}). {self._remedy}")


def _require_rows(values: Sequence[Any], numbers: Sequence[int], shape: Any, name: str = "") -> None:
    for number, value in zip(numbers, values, strict=True):
        try:
            require_shape(value, shape, name)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None


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
    except _DAMAGES as error:
        reason = show_hidden(" ".join(str(error).split())[:300])
        raise ValueError(f"'{path}' is damaged ({reason}). {remedy}") from error


_DAMAGES = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    OverflowError,
    pa.ArrowException,
)
"""Errors of reading a file that is not what it should be."""

MAKE_AGAIN = "Delete the folder of this stage and run the same command again, or move it away to report the rest."
WRITE_AGAIN = "Run the command that wrote it again, or move it away to report the rest."


def read_object(path: Path, shape: Any, remedy: str) -> dict[str, Any]:
    """
    Reads a JSON file that holds an object.

    Args:
        path (`Path`):
            The file.
        shape (`type`):
            Its shape.
        remedy (`str`):
            Sentence that says what the user can do if it is damaged.

    Returns:
        `dict`: The object.

    Raises:
        ValueError: If the file is damaged.
    """
    return explain_damage(path, remedy, lambda: require_shape(read_json(path), shape))


def read_stage_rows(folder: Path, shape: type[BaseModel]) -> Rows | None:
    """
    Reads the dataset of a stage.

    Args:
        folder (`Path`):
            Folder of the stage.
        shape (`type[BaseModel]`):
            Shape of a row.

    Returns:
        [`Rows`] or `None`: The rows. `None` if the stage has no dataset.

    Raises:
        ValueError: If the dataset is damaged.
    """
    data = folder / DATA
    if not data.is_dir():
        return None
    dataset = explain_damage(data, MAKE_AGAIN, lambda: Dataset.load_from_disk(str(data)))
    return Rows(dataset, shape, data, MAKE_AGAIN)


def read_file_rows(path: Path, shape: type[BaseModel]) -> Rows | None:
    """
    Reads a JSON Lines file.

    Args:
        path (`Path`):
            The file.
        shape (`type[BaseModel]`):
            Shape of a row.

    Returns:
        [`Rows`] or `None`: The rows. `None` if there is no such file.

    Raises:
        ValueError: If the file or one of its rows is damaged.
    """
    if not path.is_file():
        return None
    rows = Rows(
        explain_damage(path, WRITE_AGAIN, lambda: read_rows(path) if path.stat().st_size else []),
        shape,
        path,
        WRITE_AGAIN,
    )
    rows.take(range(len(rows)))  # also rows that the page will not show
    return rows


def read_shards(folder: Path, shape: type[BaseModel]) -> Rows | None:
    """
    Reads the finished shards in a folder.

    Args:
        folder (`Path`):
            Folder of shards.
        shape (`type[BaseModel]`):
            Shape of a row.

    Returns:
        [`Rows`] or `None`: The rows of all finished shards. `None` if there is no such shard.

    Raises:
        ValueError: If a shard is damaged.
    """
    files = sorted(folder.glob("shard-*.arrow"))
    if not files:
        return None
    read = [explain_damage(file, WRITE_AGAIN, lambda file=file: Dataset.from_file(str(file))) for file in files]
    dataset = explain_damage(folder, WRITE_AGAIN, lambda: concatenate_datasets(read))
    return Rows(dataset, shape, folder, WRITE_AGAIN)


def read_parquet(folder: Path, shape: type[BaseModel]) -> Rows | None:
    """
    Reads all Parquet files of a folder.

    Args:
        folder (`Path`):
            The folder.
        shape (`type[BaseModel]`):
            Shape of a row.

    Returns:
        [`Rows`] or `None`: Their rows. `None` if there is no such file.

    Raises:
        ValueError: If a file or a row is damaged.
    """
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.parquet")):
        read = explain_damage(file, WRITE_AGAIN, lambda file=file: read_rows(file))
        rows += Rows(read, shape, file, WRITE_AGAIN).take(range(len(read)))
    return Rows(rows, path=folder, remedy=WRITE_AGAIN) if rows else None
