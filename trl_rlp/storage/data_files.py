"""Reads files of rows: JSON, JSON Lines, CSV, TSV, Parquet and Arrow files, plain or compressed."""

import bz2
import codecs
import collections
import gzip
import io
import itertools
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Json, List

from trl_rlp.storage.json_files import replace_nan


DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of files of rows. They distinguish paths from Hub names. Only CSV and TSV files need theirs to be read."""

SEPARATORS = {".csv": ",", ".tsv": "\t"}

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings of files that begin with these bytes. Others are UTF-8, with or without such a mark."""

DAMAGES = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError)
"""Errors of a compressed file that is incomplete or damaged. The operating system's own errors have a number."""

ROW_FORMAT = "Write one JSON object per line, or one list of objects."


def _open_zip(path: Path) -> BinaryIO:
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise ValueError(f"'{path}' holds {len(names)} files. Extract it, and pass the file of the rows.")
    return archive.open(names[0])


def _open_zstandard(path: Path) -> BinaryIO:
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


COMPRESSIONS: dict[bytes, Callable[[Path], BinaryIO]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstandard,
    b"PK\x03\x04": _open_zip,
}
"""Functions that open compressed files, by the first bytes of the file."""


def read_dataset(path: Path) -> Dataset:
    """
    Reads a file of rows as a dataset. Text stays text, also if it looks like a date or, in a CSV file, like a number.

    Args:
        path (`Path`):
            The file.

    Returns:
        `datasets.Dataset`: The rows. Keys that are missing in a row, and empty cells of a CSV file, are `None`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is empty, damaged, not in one of the formats, or its rows are not a table.
    """
    with _open(path) as file:
        if _is_json(path, file):
            return _build_dataset(path, *_read_columns(path, file))
        return _read_table(path, file)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """
    Reads a file of rows as dicts. One column may hold several kinds of values, which a dataset does not allow.

    Args:
        path (`Path`):
            The file.

    Returns:
        `list[dict]`: The rows.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is empty, damaged, or not in one of the formats.
    """
    with _open(path) as file:
        if _is_json(path, file):
            return [row for _, row in _iterate_rows(path, file)]
        return _read_table(path, file).to_list()


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Opens a file, and decompresses it while it is read."""
    with open(path, "rb") as file:
        start = file.read(max(map(len, COMPRESSIONS)))
    opener = next((function for magic, function in COMPRESSIONS.items() if start.startswith(magic)), None)
    try:
        with opener(path) if opener else open(path, "rb") as file:
            yield file
    except DAMAGES as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"'{path}' is damaged or incomplete ({error}). Download or compress it again.") from error


def _is_json(path: Path, file: BinaryIO) -> bool:
    """Whether the rows are JSON. Everything is, except Parquet and Arrow files and what is called CSV or TSV."""
    return not _read_start(file).startswith((b"PAR1", b"ARROW1")) and _data_suffix(path) not in (*SEPARATORS, ".arrow")


def _read_start(file: BinaryIO) -> bytes:
    return file.peek(8)[:8]


def _data_suffix(path: Path) -> str:
    """Returns the suffix before that of the compression: `.csv` for `rows.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def looks_like_data_file(name: str) -> bool:
    """
    Checks whether a name has the suffix of a file of rows, such as `rows.csv.gz`.

    Args:
        name (`str`):
            Path or Hub name.

    Returns:
        `bool`.
    """
    return _data_suffix(Path(name)) in DATA_SUFFIXES


def _read_table(path: Path, file: BinaryIO) -> Dataset:
    start = _read_start(file)
    try:
        if start.startswith(b"PAR1"):
            dataset = Dataset(pq.read_table(file))
        elif start.startswith(b"ARROW1"):
            dataset = Dataset(pa.ipc.open_file(file).read_all())
        elif _data_suffix(path) == ".arrow":
            dataset = Dataset(pa.ipc.open_stream(file).read_all())
        else:
            dataset = _read_csv(path, file)
    except pa.ArrowException as error:
        raise ValueError(f"The dataset at '{path}' is damaged or incomplete ({error}). Write it again.") from error
    if not len(dataset):
        raise ValueError(f"The dataset at '{path}' is empty. Write at least one row.")
    return dataset


def _read_csv(path: Path, file: BinaryIO) -> Dataset:
    """Reads text only. A guess of types would turn the known answer `007` into 7, and `NA` into a missing value."""
    separator = SEPARATORS[_data_suffix(path)]
    remedy = f"Write cells that hold {separator!r} in quotes."
    options = {"sep": separator, "dtype": object, "keep_default_na": False, "na_values": [""]}
    try:
        rows = pd.read_csv(file, encoding=_detect_encoding(file), **options)
    except pd.errors.EmptyDataError:
        raise ValueError(f"The dataset at '{path}' is empty. Write the names of the columns, then the rows.") from None
    except UnicodeDecodeError:
        with _open(path) as again:
            collections.deque(_decode_lines(path, again), maxlen=0)  # raises an error that names the line
        raise
    except pd.errors.ParserError as error:
        raise ValueError(f"The dataset at '{path}' is not a table ({str(error).strip()}). {remedy}") from error
    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes the first cells for names of rows
        raise ValueError(f"The dataset at '{path}' has rows with more cells than columns. {remedy}")
    return Dataset.from_pandas(rows, preserve_index=False)


def _detect_encoding(file: BinaryIO) -> str:
    start = _read_start(file)
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8-sig")


def _decode_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yields the lines and their numbers. It decodes UTF-8 line by line, so an error can name the line."""
    encoding = _detect_encoding(file)
    number = 0
    try:
        if encoding != "utf-8-sig":
            yield from enumerate(io.TextIOWrapper(file, encoding, newline="\n"), 1)
            return
        for line in file:
            number += 1
            yield number, line.decode(encoding)
    except UnicodeDecodeError as error:
        place = f" in line {number}" if number else ""
        raise ValueError(f"The dataset at '{path}' is not text{place} ({error}). Save it as UTF-8.") from error


def _iterate_rows(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a JSON file and their places, for error messages."""
    # `load_dataset` and `pandas.read_json` would convert text that looks like a date, and round large integers.
    lines = ((number, line) for number, line in _decode_lines(path, file) if line.strip())
    number, first = next(lines, (0, ""))
    if not first:
        raise ValueError(f"The dataset at '{path}' is empty. {ROW_FORMAT}")
    if first.lstrip().startswith("["):
        text = "\n" * (number - 1) + first + "".join(line for _, line in lines)
        rows = ((f"row {index}", row) for index, row in enumerate(_parse_json(path, text)))
    else:
        lines = itertools.chain([(number, first)], lines)
        rows = ((f"line {number}", _parse_json(path, line.rstrip("\r\n"), number)) for number, line in lines)
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"The dataset at '{path}' has rows that are not objects, first in {place}. {ROW_FORMAT}")
        yield place, row


def _parse_json(path: Path, text: str, number: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {number or error.lineno}, column {error.colno}"
        raise ValueError(f"The dataset at '{path}' is not JSON ({place}: {error.msg}). {ROW_FORMAT}") from error
    except (ValueError, RecursionError) as error:  # too many digits or too many levels
        place = f"line {number}: " if number else ""
        raise ValueError(f"The dataset at '{path}' is not JSON ({place}{error}). {ROW_FORMAT}") from error


def _read_columns(path: Path, file: BinaryIO) -> tuple[dict[str, list[Any]], list[str]]:
    """Reads JSON rows to columns. Returns the columns, and the place of each row."""
    columns: dict[str, list[Any]] = {}
    places: list[str] = []
    for place, row in _iterate_rows(path, file):
        for name, value in row.items():
            column = columns.setdefault(name, [])
            column += [None] * (len(places) - len(column))
            column.append(value)
        places.append(place)
    if not places:
        raise ValueError(f"The dataset at '{path}' is empty. {ROW_FORMAT}")
    for column in columns.values():
        column += [None] * (len(places) - len(column))
    return columns, places


ARROW_ERRORS = (pa.ArrowException, OverflowError, TypeError, ValueError)


def _build_dataset(path: Path, columns: dict[str, list[Any]], places: list[str]) -> Dataset:
    built = {name: _build_json(path, name, values, places) for name, values in columns.items()}
    try:
        return Dataset.from_dict({name: columns[name] if array is None else array for name, array in built.items()})
    except ARROW_ERRORS:
        plain = {name: _build_column(path, name, columns[name], places) for name in columns if built[name] is None}
        return Dataset.from_dict({name: plain.get(name, array) for name, array in built.items()})


def _build_json(path: Path, name: str, values: list[Any], places: list[str]) -> pa.ChunkedArray | None:
    """Builds a column of dicts as JSON if structs would change them. Returns `None` for other columns."""
    feature = find_json_type(values)
    if feature is None:
        return None
    texts = []
    for place, value in zip(places, values, strict=True):
        try:
            texts.append(_write_dicts(replace_nan(value)))
        except ValueError as error:
            raise _explain_refusal(path, name, place, error) from error
    return Dataset.from_dict({name: texts}, features=Features({name: feature})).data.column(name)


def find_json_type(values: list[Any]) -> Json | List | None:
    """
    Returns the type of a column whose dicts structs would change, because they fill in the keys of other dicts.

    Args:
        values (`list`):
            Values of the column. The keys of messages may differ, because a key whose value is `None` counts as
            missing there. The keys inside them, for example those of a tool call, may not.

    Returns:
        [`~datasets.Json`] or [`~datasets.List`] or `None`: A type with `Json` in place of the outermost dicts. `None`
        if the values are not dicts or lists of dicts, or if structs hold them as they are.
    """
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, list) for value in known):
        inner = find_json_type(list(itertools.chain.from_iterable(known)))
        return None if inner is None else List(inner)
    if not known or not all(isinstance(value, dict) for value in known):
        return None
    if not all("role" in value for value in known):
        return None if _are_alike(known) else Json()
    names = dict.fromkeys(itertools.chain.from_iterable(known))
    return None if all(_are_alike([value[name] for value in known if name in value]) for name in names) else Json()


def _are_alike(values: list[Any]) -> bool:
    """Whether values have one type, and dicts in them the same keys."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, list) for value in known):
        return _are_alike(list(itertools.chain.from_iterable(known)))
    if known and all(isinstance(value, dict) for value in known):
        names = known[0].keys()
        return all(value.keys() == names for value in known) and all(
            _are_alike([value[name] for value in known]) for name in names
        )
    return len({type(value) for value in known}) <= 1


def _write_dicts(value: Any) -> Any:
    """
    Writes the outermost dicts as JSON text, and checks that `Json` can read it. `Json` itself writes ten decimals of a
    number. When it reads, the 16th digit may still change.
    """
    if isinstance(value, list):
        return [_write_dicts(entry) for entry in value]
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False)
    Json().decode_example(text)
    return text


def _build_column(path: Path, name: str, values: list[Any], places: list[str]) -> list[Any] | pa.Array:
    """Finds what Arrow refuses in a column. Integers from 2^63 to 2^64 - 1 are not refused but unsigned."""
    problem = _find_problem(values)
    if problem is None:
        return values
    row, error = problem
    if _is_large(error) and all(value is None or (type(value) is int and 0 <= value < 2**64) for value in values):
        return pa.array(values, pa.uint64())
    raise _explain_refusal(path, name, places[row], error) from error


def _is_large(error: Exception) -> bool:
    return isinstance(error, OverflowError) or any(text in str(error) for text in ("too large", "too big"))


def _explain_refusal(path: Path, name: str, place: str, error: Exception) -> ValueError:
    start = f"The dataset at '{path}' has"
    if isinstance(error, UnicodeEncodeError):
        return ValueError(
            f"{start} half of a character in the column `{name}`, {place} ({error}). Correct or drop the row."
        )
    if _is_large(error):
        return ValueError(
            f"{start} an integer of more than 64 bits in the column `{name}`, {place}. Write it in quotes."
        )
    return ValueError(
        f"{start} several kinds of values in one column: `{name}` changes its kind in {place} ({error}). Write one "
        "kind per column, for example messages for every prompt."
    )


def _find_problem(values: list[Any]) -> tuple[int, Exception] | None:
    """Returns the first row that Arrow refuses together with the rows before it, and its error."""

    def fails(count: int) -> Exception | None:
        try:
            Dataset.from_dict({"column": values[:count]})
        except ARROW_ERRORS as error:
            return error
        return None

    error = fails(len(values))
    if error is None:
        return None
    accepted, refused = 0, len(values)
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        found = fails(middle)
        accepted, refused, error = (accepted, middle, found) if found else (middle, refused, error)
    return refused - 1, error
