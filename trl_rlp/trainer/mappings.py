"""Reads the fields of a configuration that are mappings."""

import json
from dataclasses import fields
from typing import Any


def parse_mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """
    Converts the value of a mapping field to a dict. A command line passes JSON text, Python passes a dict.

    Args:
        name (`str`):
            Name of the field, for the error message.
        value (`dict` or `str`, *optional*):
            Value that the user passed.

    Returns:
        `dict` or `None`: The mapping. `None` stays `None`.

    Raises:
        TypeError: If the value is not a mapping.
        ValueError: If the value is text that is not JSON.
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
    Converts text to floats for the float fields of a configuration. YAML reads `1e-5` as text.

    Args:
        name (`str`):
            Name of the mapping field, for the error message.
        values (`dict`):
            Fields of the configuration.
        config_class (`type`):
            Dataclass that declares the fields.

    Returns:
        `dict`: The same fields, with floats where the dataclass declares `float` or `float | None`.

    Raises:
        ValueError: If the text for such a field is not a number.
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
