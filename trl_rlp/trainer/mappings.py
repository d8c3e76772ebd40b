"""Fields of configurations that are mappings."""

import json
from dataclasses import fields
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


def parse_numbers(name: str, values: dict[str, Any], config_class: type) -> dict[str, Any]:
    """
    Makes numbers of text where a configuration has numbers: YAML reads `1e-5` as text.

    Args:
        name (`str`):
            Name of the field, for the message.
        values (`dict`):
            Fields of the configuration.
        config_class (`type`):
            A dataclass.

    Returns:
        `dict`: the same, with floats where the class has nothing but floats.

    Raises:
        ValueError: if such text is no number.
    """
    types = {entry.name: entry.type for entry in fields(config_class)}
    converted = dict(values)
    for key, value in values.items():
        if isinstance(value, str) and types[key] in (float, "float", float | None, "float | None"):
            try:
                converted[key] = float(value)
            except ValueError:
                raise ValueError(f"`{name}` sets `{key}`={value!r}, which must be a number.") from None
    return converted
