"""Columns of a dataset that change how its messages are rendered: `tools` and `chat_template_kwargs`, as in TRL."""

import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset


TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that TRL's trainers pass to the chat template, row by row."""


def require_no_template_columns(dataset: Dataset, name: str) -> None:
    """
    Checks that prompts have no column that changes how they are rendered, because the policy's trainer reads none.

    Args:
        dataset ([`~datasets.Dataset`]):
            Prompts U.
        name (`str`):
            Name of the argument, for the error message.

    Raises:
        ValueError: If the dataset has such a column.
    """
    columns = [column for column in TEMPLATE_COLUMNS if column in dataset.column_names]
    if columns:
        raise ValueError(
            f"`{name}` has the columns {columns}, which the policy's trainer does not read, so the policy would be "
            "sampled on other prompts than it is trained on. Remove them. For all prompts, set `chat_template_kwargs` "
            "in the policy's configuration, and describe tools in a system message."
        )


def get_template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns the arguments of `apply_chat_template` that a row sets, as TRL's `RewardTrainer` reads them.

    Args:
        row (`Mapping`):
            A row of a dataset. `tools` is a list of JSON schemas, or a list as JSON text. `chat_template_kwargs` is a
            dict. Both are optional, and both may be `None`.

    Returns:
        `dict`: Arguments by name. Empty if the row sets none.

    Example:

    ```python
    >>> get_template_options({"prompt": [], "chat_template_kwargs": {"enable_thinking": False}})
    {'enable_thinking': False}
    ```
    """
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    options = dict(row.get("chat_template_kwargs") or {})
    return options if tools is None else {"tools": tools, **options}


def list_template_options(dataset: Dataset | Mapping[str, list]) -> list[dict[str, Any]] | None:
    """
    Returns the [`get_template_options`] of all rows.

    Args:
        dataset ([`~datasets.Dataset`] or `Mapping[str, list]`):
            A dataset, or a batch of its columns.

    Returns:
        `list[dict]` or `None`: One per row. `None` if the dataset has neither column.
    """
    names = dataset.column_names if isinstance(dataset, Dataset) else list(dataset)
    columns = {name: dataset[name] for name in TEMPLATE_COLUMNS if name in names}
    if not columns:
        return None
    rows = zip(*columns.values(), strict=True)
    return [get_template_options(dict(zip(columns, values, strict=True))) for values in rows]
