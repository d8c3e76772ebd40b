"""Checks of datasets. Each error message is one line that says what is wrong and what to do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from trl_rlp.data.turns import message_text


Data = TypeVar("Data")

_ROWS_PER_CHECK = 10_000
_VISIBLE = "[!-~]"
"""A text with one of these characters is not empty. Python looks at the other texts."""


def remove_format(dataset: Data) -> Data:
    """
    Returns a dataset that yields plain Python values, whatever `set_format` or `set_transform` the user called.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The user's dataset, which does not change. Anything else is returned as it is.

    Returns:
        `Dataset` or `IterableDataset`: The same rows with all columns. A transform (`set_transform`, `with_transform`)
        is applied to each row once, as in `Dataset.map`.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.with_format(None)
    if not isinstance(dataset, Dataset):
        return dataset
    if dataset.format["type"] == "custom":
        dataset = dataset.map(_copy_row, desc="Applying the dataset's transform")
    is_plain = dataset.format["type"] is None and dataset.format["columns"] == dataset.column_names
    return dataset if is_plain else dataset.with_format(None)


def _copy_row(row: dict[str, Any]) -> dict[str, Any]:
    return dict(row)


def prompt_text(prompt: str | list[dict[str, str]]) -> str:
    """
    Converts a prompt to plain text, for models without a chat template (NLI classifiers, embedders).

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`.

    Returns:
        `str`: The text itself, or the contents of the messages, one per line. Roles are not included.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt if message.get("content"))


def require_encodable(texts: Sequence[str | list[dict[str, str]]], name: str) -> None:
    """
    Checks that texts are valid Unicode. Half of a surrogate pair, as in the JSON text `"\\ud83d"`, cannot be sent or
    saved.

    Args:
        texts (`Sequence`):
            Texts or messages.
        name (`str`):
            Name of the argument, for the error message.

    Raises:
        ValueError: If a text holds half of a surrogate pair.
    """
    for row, text in enumerate(texts):
        try:
            prompt_text(text).encode()
        except UnicodeEncodeError as error:
            excerpt = ascii(prompt_text(text)[max(0, error.start - 20) : error.start + 1])
            raise ValueError(
                f"`{name}` row {row} is no valid text. It holds half of a surrogate pair: {excerpt}. Replace it, or "
                "drop the row."
            ) from None


def require_one_split(dataset: Any, name: str) -> None:
    """
    Checks that `dataset` is not a dict of splits, which `load_dataset` returns if no split is named.

    Args:
        dataset (`Any`):
            What the user passed as a dataset.
        name (`str`):
            Name of the argument, for the error message.

    Raises:
        TypeError: If it is a dict.
    """
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"`{name}` is a `{type(dataset).__name__}` with the splits {list(dataset)}. Pass one of them, for example "
            f"`{name}[{next(iter(dataset), 'train')!r}]`."
        )


def require_columns(dataset: Dataset, columns: list[str], name: str) -> Dataset:
    """
    Checks that `dataset` is a `datasets.Dataset` with at least one row and all of `columns`, and returns it.

    Args:
        dataset ([`~datasets.Dataset`]):
            The user's dataset.
        columns (`list[str]`):
            Required columns. Other columns are allowed.
        name (`str`):
            Name of the argument, for the error message.

    Returns:
        `datasets.Dataset`: The dataset without its format, see [`remove_format`].

    Raises:
        TypeError: If it is not a `datasets.Dataset`.
        ValueError: If a column is missing or there are no rows.
    """
    require_one_split(dataset, name)
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"`{name}` must be a `datasets.Dataset`, got `{type(dataset).__name__}`. Load it with `datasets`."
        )
    if len(dataset) > 0:
        dataset = remove_format(dataset)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"`{name}` lacks the columns {missing}. It has {dataset.column_names}. Rename or add them "
            "(`Dataset.rename_column`, `Dataset.add_column`)."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{name}` is empty. Pass at least one row.")
    return dataset


def require_prompts(dataset: Dataset, name: str = "prompts") -> Dataset:
    """
    Checks a prompt-only dataset, a column `prompt` without empty entries, and returns it.

    Args:
        dataset ([`~datasets.Dataset`]):
            The user's dataset.
        name (`str`, *optional*, defaults to `"prompts"`):
            Name of the argument, for the error message.

    Returns:
        `datasets.Dataset`: The dataset without its format, see [`remove_format`].

    Raises:
        TypeError: If it is not a `datasets.Dataset`, or a prompt is neither text nor messages.
        ValueError: If the column is missing, there are no rows, or a prompt is empty or only white space.
    """
    dataset = require_columns(dataset, ["prompt"], name)
    for first_row, table, rows in _read_parts(dataset, ["prompt"]):
        if _are_texts(table["prompt"]) and pc.all(pc.match_substring_regex(table["prompt"], _VISIBLE)).as_py():
            continue
        for row, prompt in enumerate(rows["prompt"][:], start=first_row):
            if not is_prompt(prompt):
                raise TypeError(
                    f"`{name}` row {row}: `prompt` must be text or a list of messages, each with `role` and `content` "
                    f"as text, got {str(prompt)[:80]}. Convert it with `Dataset.map`."
                )
            if not prompt_text(prompt).strip():
                raise ValueError(f"`{name}` row {row} has an empty prompt. Drop such rows with `Dataset.filter`.")
    return dataset


def require_preferences(dataset: Dataset, name: str = "preferences") -> Dataset:
    """
    Checks labeled pairs and returns them: columns `chosen` and `rejected` and optionally `prompt`, with text or
    messages.

    Args:
        dataset ([`~datasets.Dataset`]):
            The user's dataset.
        name (`str`, *optional*, defaults to `"preferences"`):
            Name of the argument, for the error message.

    Returns:
        `datasets.Dataset`: The dataset without its format, see [`remove_format`].

    Raises:
        TypeError: If it is not a `datasets.Dataset`, or an entry is neither text nor messages.
        ValueError: If a column is missing or there are no rows.
    """
    dataset = require_columns(dataset, ["chosen", "rejected"], name)
    for column in ("prompt", "chosen", "rejected"):
        if column not in dataset.column_names:
            continue
        for first_row, table, rows in _read_parts(dataset, [column]):
            for row, value in enumerate([] if _are_texts(table[column]) else rows[column][:], start=first_row):
                if not is_prompt(value):
                    raise TypeError(
                        f"`{name}` row {row}: `{column}` must be text or a list of messages, each with `role` and "
                        f"`content` as text, got {str(value)[:80]}. Convert it with `Dataset.map`."
                    )
    return dataset


def _read_parts(dataset: Dataset, columns: list[str]) -> Iterator[tuple[int, pa.Table, Dataset]]:
    """
    Reads columns part by part. Arrow checks whole parts, and Python looks only at those that may be wrong.

    Yields the number of the first row, the part as a table, and the part as a dataset.
    """
    dataset = dataset.select_columns(columns)
    for start in range(0, len(dataset), _ROWS_PER_CHECK):
        part = dataset.select(range(start, min(start + _ROWS_PER_CHECK, len(dataset))))
        yield start, part.with_format("arrow")[:], part


def _are_texts(column: pa.ChunkedArray) -> bool:
    """Checks whether all values are texts."""
    return pa.types.is_string(column.type) and column.null_count == 0


def _find_list_size(column: pa.ChunkedArray, is_type: Callable[[pa.DataType], bool]) -> int | None:
    """Returns the size of all lists of a type. `None` if sizes differ, or a list or value is missing."""
    if not pa.types.is_list(column.type) or not is_type(column.type.value_type) or column.null_count:
        return None
    sizes = pc.unique(pc.list_value_length(column)).to_pylist()
    return sizes[0] if len(sizes) == 1 and pc.list_flatten(column).null_count == 0 else None


def is_prompt(value: Any) -> bool:
    """
    Checks whether a value is a prompt.

    Args:
        value (`Any`):
            An entry of the column `prompt`.

    Returns:
        `bool`: Whether it is text or a list of messages.
    """
    return isinstance(value, str) or (isinstance(value, list) and all(_is_message(message) for message in value))


def _is_message(value: Any) -> bool:
    """Checks whether a value is a message. Only one with tool calls or thoughts needs no content."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str) or (content is None and message_text(value) != "")


def require_values(dataset: Dataset, columns: Sequence[str], name: str) -> None:
    """
    Checks that no row lacks a value.

    Args:
        dataset ([`~datasets.Dataset`]):
            The user's dataset.
        columns (`Sequence[str]`):
            Columns to check, if the dataset has them.
        name (`str`):
            Name of the argument, for the error message.

    Raises:
        ValueError: If a value is `None`.
    """
    present = [column for column in columns if column in dataset.column_names]
    if not present:
        return
    row = 0
    for table in dataset.select_columns(present).with_format("arrow").iter(_ROWS_PER_CHECK):
        for column in present:
            if table[column].null_count:
                missing = row + table[column].is_null().to_pylist().index(True)
                raise ValueError(
                    f"`{name}` row {missing} has no `{column}`. Drop such rows with `Dataset.filter`, or remove the "
                    "column if it is optional."
                )
        row += len(table)


def require_answers(dataset: Dataset, name: str) -> None:
    """
    Checks the known answers of a dataset, if it has a column `answers`.

    Args:
        dataset ([`~datasets.Dataset`]):
            The user's dataset.
        name (`str`):
            Name of the argument, for the error message.

    Raises:
        TypeError: If an entry is neither text nor a list of texts.
    """
    if "answers" not in dataset.column_names:
        return
    for first_row, table, rows in _read_parts(remove_format(dataset), ["answers"]):
        for row, answers in enumerate([] if _are_texts(table["answers"]) else rows["answers"][:], start=first_row):
            if not _is_answer(answers):
                raise TypeError(
                    f"`{name}` row {row}: `answers` must be an accepted answer or a list of them, as text, got "
                    f"{answers!r}. Convert it with `Dataset.map`, or remove the column."
                )


def require_sample_answers(answers: Sequence[str | Sequence[str]], samples: Dataset) -> None:
    """
    Checks known answers that are passed together with samples.

    Args:
        answers (`Sequence`):
            The user's answers.
        samples ([`~datasets.Dataset`]):
            Samples that the answers belong to.

    Raises:
        TypeError: If `answers` is one text, or an entry is neither text nor a list of texts.
        ValueError: If the number of entries is not the number of rows.
    """
    if isinstance(answers, str | dict) or not hasattr(answers, "__getitem__"):
        raise TypeError(f"`answers` must be a list with one entry per row of the samples, got {str(answers)[:60]!r}.")
    if len(answers) != len(samples):
        raise ValueError(f"`answers` has {len(answers)} entries for {len(samples)} samples. Pass one per row.")
    for row, entry in enumerate(answers):
        if not _is_answer(entry):
            raise TypeError(
                f"`answers` row {row} must be an accepted answer or a list of them, as text, got {entry!r}. Drop rows "
                "without a known answer."
            )


def _is_answer(entry: Any) -> bool:
    """Checks whether a value is one accepted answer or a non-empty list of them."""
    accepted = [entry] if isinstance(entry, str) else entry
    return isinstance(accepted, list | tuple) and bool(accepted) and all(isinstance(text, str) for text in accepted)


def require_samples(dataset: Dataset, name: str = "policy_samples") -> Dataset:
    """
    Checks policy samples P and returns them: columns `prompt`, `completions` and `finished`, with the same n >= 2 for
    every prompt.

    Args:
        dataset ([`~datasets.Dataset`]):
            The user's dataset, for example the result of `sample_completions`.
        name (`str`, *optional*, defaults to `"policy_samples"`):
            Name of the argument, for the error message.

    Returns:
        `datasets.Dataset`: The dataset without its format, see [`remove_format`].

    Raises:
        TypeError: If it is not a `datasets.Dataset`, a prompt is neither text nor messages, or a completion is not
            text.
        ValueError: If a column is missing, there are no rows, a prompt is empty, n differs between rows or is below 2,
            or `finished` and `completions` have different lengths.
    """
    dataset = require_columns(dataset, ["prompt", "completions", "finished"], name)
    require_prompts(dataset, name)
    expected = None
    for first_row, table, rows in _read_parts(dataset, ["completions", "finished"]):
        size = _find_list_size(table["completions"], pa.types.is_string)
        if size is None or size != _find_list_size(table["finished"], pa.types.is_boolean):
            _require_lists(rows, first_row, name)
            size = len(rows[0]["completions"])
        expected = size if expected is None else expected
        if expected < 2:
            raise ValueError(
                f"`{name}` has {expected} completions per prompt, but RLP compares completions. Sample at least 2."
            )
        _require_sizes(table, first_row, expected, name)
    return dataset


def _require_lists(rows: Dataset, first_row: int, name: str) -> None:
    for row, (completions, finished) in enumerate(
        zip(rows["completions"][:], rows["finished"][:], strict=True), first_row
    ):
        has_texts = isinstance(completions, list) and all(isinstance(text, str) for text in completions)
        if not (has_texts and isinstance(finished, list) and all(isinstance(flag, bool) for flag in finished)):
            raise TypeError(
                f"`{name}` row {row}: `completions` must be a list of texts and `finished` a list of booleans, got "
                f"{str(completions)[:80]} and {str(finished)[:80]}. Sample again, or convert them."
            )


def _require_sizes(table: pa.Table, first_row: int, expected: int, name: str) -> None:
    sizes = pc.list_value_length(table["completions"])
    flags = pc.list_value_length(table["finished"])
    if pc.all(pc.and_(pc.equal(sizes, expected), pc.equal(flags, sizes))).as_py():
        return
    for row, (size, num_flags) in enumerate(zip(sizes.to_pylist(), flags.to_pylist(), strict=True), first_row):
        if size != expected:
            raise ValueError(
                f"`{name}` row {row} has {size} completions and row 0 has {expected}. Sample the same number for "
                "every prompt."
            )
        if num_flags != size:
            raise ValueError(
                f"`{name}` row {row} has {size} completions but {num_flags} entries in `finished`. Pass one boolean "
                "per completion."
            )
