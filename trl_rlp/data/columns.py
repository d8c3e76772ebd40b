"""Batches of columns, as `datasets` and Ray Data pass them to callables: reading, checking and extending them."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

from trl_rlp.data.validation import is_prompt


Batch = Mapping[str, Any] | pa.Table


def read_columns(batch: Batch) -> dict[str, list]:
    """
    Converts a batch of columns to plain Python values.

    Args:
        batch (`Mapping` or `pyarrow.Table`):
            Columns by name: lists or NumPy arrays, which may hold further arrays. `datasets` passes lists. Ray Data
            passes arrays with `batch_format="numpy"` and a table with `batch_format="pyarrow"`.

    Returns:
        `dict[str, list]`: The columns in their order. JSON columns of a table are decoded, as `datasets` does.

    Raises:
        TypeError: If `batch` is neither a mapping nor a table, for example one row or a `pandas.DataFrame`, or if a
            column is neither a list nor an array, for example a tensor.

    Example:

    ```python
    >>> read_columns({"prompt": np.array(["a"], dtype=object), "finished": [np.array([True, False])]})
    {'prompt': ['a'], 'finished': [[True, False]]}
    ```
    """
    if isinstance(batch, pa.Table):
        columns = batch.to_pydict()
        encoded = {field.name: columns[field.name] for field in batch.schema if "arrow.json" in str(field.type)}
        return {**columns, **(Features.from_arrow_schema(batch.schema).decode_batch(encoded) if encoded else {})}
    values = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    wrong = [value for value in values if not isinstance(value, list | np.ndarray)]
    if wrong or not isinstance(batch, Mapping):
        raise TypeError(
            "`batch` must be columns by name (lists or NumPy arrays) or a `pyarrow.Table`, got "
            f"`{type((wrong or values)[0]).__name__}`. Pass `batched=True` to `Dataset.map`, and a dataset without a "
            "format (`with_format(None)`), or `batch_format='pyarrow'` to `map_batches` of Ray Data."
        )
    return {name: _to_plain(batch[name]) for name in batch}


def add_columns(batch: Batch, columns: dict[str, list], types: Mapping[str, pa.DataType]) -> Batch:
    """
    Adds columns to a batch. Existing columns with these names are replaced.

    Args:
        batch (`Mapping` or `pyarrow.Table`):
            The batch, as for [`read_columns`].
        columns (`dict[str, list]`):
            New columns, with one value for each row.
        types (`Mapping[str, pyarrow.DataType]`):
            Types of the new columns.

    Returns:
        `dict[str, list]` or `pyarrow.Table`: A table for a table, and lists for anything else.
    """
    if not isinstance(batch, pa.Table):
        kept = {name: values for name, values in read_columns(batch).items() if name not in columns}
        return {**kept, **columns}
    batch = batch.drop_columns([name for name in columns if name in batch.column_names])
    for name, values in columns.items():
        batch = batch.append_column(name, pa.array(values, types[name]))
    return batch


def require_sample_columns(columns: Mapping[str, list], names: Sequence[str]) -> None:
    """
    Checks the policy samples of a batch. Rows may have different numbers of completions.

    Args:
        columns (`Mapping[str, list]`):
            Result of [`read_columns`].
        names (`Sequence[str]`):
            Required columns.

    Raises:
        TypeError: If a prompt is neither text nor messages, or a row's completions are not texts, or its `finished`
            are not booleans.
        ValueError: If a column is missing, or a row has no completions, or `finished` has another length.
    """
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"The batch lacks the columns {missing}. It has {list(columns)}. Rename or add them.")
    for row, prompt in enumerate(columns["prompt"]):
        if not is_prompt(prompt):
            raise TypeError(
                f"Row {row} of the batch: `prompt` must be text or a list of messages, each with `role` and `content` "
                f"as text, got {str(prompt)[:80]}."
            )
    for row, completions in enumerate(columns["completions"]):
        if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
            raise TypeError(
                f"Row {row} of the batch: `completions` must be a list of texts, got {str(completions)[:80]}."
            )
        if not completions:
            raise ValueError(f"Row {row} of the batch has no completions. Drop such rows.")
        if "finished" in names:
            _require_flags(row, columns["finished"][row], len(completions))


def _require_flags(row: int, flags: Any, num_completions: int) -> None:
    if not isinstance(flags, list) or not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(f"Row {row} of the batch: `finished` must be a list of booleans, got {str(flags)[:80]}.")
    if len(flags) != num_completions:
        raise ValueError(
            f"Row {row} of the batch has {num_completions} completions but {len(flags)} entries in `finished`. Pass "
            "one boolean per completion."
        )


def _to_plain(value: Any) -> Any:
    """Converts NumPy's arrays and scalars, at any depth. Ray Data nests arrays."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return value


def flatten_samples(samples: Dataset | Mapping[str, Sequence]) -> tuple[list, list[str], list[bool]]:
    """
    Lists the completions of policy samples one after another.

    Args:
        samples ([`~datasets.Dataset`] or `Mapping[str, Sequence]`):
            Policy samples, or their columns. Rows may have different numbers of completions.

    Returns:
        `tuple[list, list[str], list[bool]]`: Prompt, text and finished flag of each completion.
    """
    pairs = zip(samples["prompt"], samples["completions"], strict=True)
    prompts = [prompt for prompt, completions in pairs for _ in completions]
    completions, finished = ([*chain.from_iterable(samples[name])] for name in ("completions", "finished"))
    return prompts, completions, finished


def list_finished(pairs: Dataset | Mapping[str, list], side: str) -> list[bool]:
    """
    Returns for one side of labeled pairs which completions are finished.

    Args:
        pairs ([`~datasets.Dataset`] or `Mapping[str, list]`):
            TRL's preference format, or a batch of its columns.
        side (`str`):
            `"chosen"` or `"rejected"`.

    Returns:
        `list[bool]`: The column `chosen_finished` or `rejected_finished`. All are finished without the column. A
        completion whose entry is `None` is finished too, because a mixed dataset has `None` for human pairs.
    """
    names = pairs.column_names if isinstance(pairs, Dataset) else list(pairs)
    if f"{side}_finished" not in names:
        return [True] * len(pairs[side])
    return [flag is not False for flag in pairs[f"{side}_finished"]]
