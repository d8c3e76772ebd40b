"""Reads the fields of a configuration that are mappings."""

import json
from typing import Any

from trl_rlp.storage.paths import expand_paths
from trl_rlp.trainer.field_values import convert_fields


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


def parse_fields(name: str, value: dict[str, Any] | str | None, config_class: type) -> dict[str, Any] | None:
    """
    Converts the value of a mapping field whose keys are the fields of another configuration.

    Args:
        name (`str`):
            Name of the mapping field, for the error message.
        value (`dict` or `str`, *optional*):
            Value that the user passed.
        config_class (`type`):
            Dataclass that declares the fields.

    Returns:
        `dict` or `None`: The fields, with expanded paths and with the types that the dataclass declares. `None` stays
        `None`.

    Raises:
        TypeError: If the value is not a mapping, or a field has another type.
        ValueError: If the value is text that is not JSON, a field is unknown, or its text cannot be converted.
    """
    values = parse_mapping(name, value)
    return None if values is None else convert_fields(expand_paths(values), config_class, f"{name}.")


def require_no_evaluation(name: str, values: dict[str, Any]) -> None:
    """
    Checks that the trainer of a stage does not evaluate. It would fail at its start, without evaluation data.

    Args:
        name (`str`):
            Name of the mapping field, for the error message.
        values (`dict`):
            Fields of the trainer's configuration.

    Raises:
        ValueError: If `eval_strategy` is not `"no"`.
    """
    if values.get("eval_strategy", "no") != "no":
        raise ValueError(
            f'`{name}.eval_strategy` must be "no", got {values["eval_strategy"]!r}. The stages train without '
            "evaluation data, and the gate compares the reward models afterwards."
        )
