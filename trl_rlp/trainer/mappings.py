"""Fields of configurations that are mappings."""

import json
from typing import Any


def mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """
    Gives a field that a command line gives as JSON text and Python as a dict.

    Args:
        name (`str`):
            Name of the field, for the message.
        value (`dict` or `str`, *optional*):
            What was given.

    Returns:
        `dict` or `None`.

    Raises:
        TypeError: if it is no mapping.
        ValueError: if it is text that is not JSON.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` is not JSON ({error}). Pass a mapping such as '{{\"seed\": 1}}'.") from error
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"`{name}` must be a mapping, got {value!r}.")
    return value
