"""Converts the values of options to the types of their fields."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from numbers import Integral, Real
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments


BOOLEANS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}
"""Text for booleans, with the rule of transformers' `HfArgumentParser`."""

NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    NoneType: "null",
}
PLURALS = {int: "integers", float: "numbers", str: "texts"}
"""Names of types in error messages, and of the types of the entries of a list."""


def convert_fields(values: Mapping[str, Any], config_class: type, prefix: str = "") -> dict[str, Any]:
    """
    Converts values from YAML, JSON or Python to the types of the fields of a dataclass, or refuses them.

    It converts what a command line would convert: `"2"` to 2 for an integer, `"1e-4"` to a float (YAML reads `1e-4` as
    text), `"yes"` to true, one value to a list of one, and also 2.0 to 2 for an integer. Objects that YAML cannot
    write, such as an enum, stay as they are.

    Args:
        values (`Mapping[str, Any]`):
            Values by the names of fields.
        config_class (`type`):
            Dataclass that declares the fields.
        prefix (`str`, *optional*, defaults to `""`):
            Text before the names in error messages, such as `"policy_args."`.

    Returns:
        `dict[str, Any]`: The converted values.

    Raises:
        TypeError: If a value has another type, for example a list where the field needs text.
        ValueError: If a name is unknown, or text cannot be converted.

    Example:

    ```python
    >>> from trl import GRPOConfig
    >>> from trl_rlp.trainer.field_values import convert_fields

    >>> convert_fields({"save_total_limit": "2", "learning_rate": "1e-5"}, GRPOConfig)
    {'save_total_limit': 2, 'learning_rate': 1e-05}

    ```
    """
    hints = get_type_hints(config_class)
    for entry in fields(config_class):
        if "choices" in entry.metadata:  # the command line checks them, but a configuration in Python does not
            is_optional = NoneType in get_args(hints[entry.name])
            choices: Any = Literal[tuple(entry.metadata["choices"])]
            hints[entry.name] = choices | None if is_optional else choices
    known = [entry.name for entry in fields(config_class) if entry.init]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        owner = f"`{prefix.removesuffix('.')}` has" if prefix else "There are"
        raise ValueError(f"{owner} {unknown}, which {config_class.__name__} does not have.{hint}")
    secrets = {entry.name for entry in fields(config_class) if not entry.repr}
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = convert_value(f"{prefix}{name}", value, hints[name])
        except TypeError:
            # TRL's fields of text often accept booleans too, such as `scale_rewards` and `resume_from_checkpoint`.
            if name in secrets:
                raise TypeError(f"`{prefix}{name}` must be text. Write it in quotes.") from None
            is_text = str in (hints[name], *get_args(hints[name]))
            if not (is_text and isinstance(value, bool) and issubclass(config_class, TrainingArguments)):
                raise
            converted[name] = value
    return converted


def convert_value(name: str, value: Any, hint: Any) -> Any:
    """
    Converts one value to a type.

    Args:
        name (`str`):
            Full name of the option, for the error message.
        value:
            Value that the user passed.
        hint:
            Type of the field.

    Returns:
        The converted value.

    Raises:
        TypeError: If the value has another type.
        ValueError: If it is text that cannot be converted.
    """
    if not isinstance(value, NoneType | Real | str | list | tuple | dict | PathLike):
        return value
    try:
        return _convert(value, hint)
    except (TypeError, ValueError, OverflowError):
        remedy = ""
        if value is None:
            remedy = " Set a value, or remove the option to use its default."
        elif isinstance(value, Real) and hint in (str, str | None):
            remedy = " Write it in quotes."
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"`{name}` must be {_describe(hint)}, got {value!r}.{remedy}") from None


def _convert(value: Any, hint: Any) -> Any:
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        return _convert_to_one_of(value, get_args(hint))
    if origin is Literal:
        return _choose(value, get_args(hint))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return value if isinstance(value, origin) else _choose(value, [member.value for member in origin])
    return CONVERTERS[origin](value, get_args(hint)) if origin in CONVERTERS else value


def _convert_to_one_of(value: Any, members: tuple[Any, ...]) -> Any:
    """A value that already has one of the types is kept. Otherwise the first type that it can be converted to wins."""
    if any(_has_type(value, member) for member in members):
        return value
    for member in members:
        try:
            return _convert(value, member)
        except (TypeError, ValueError, OverflowError):
            continue
    raise TypeError


def _has_type(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    return hint in (NoneType, bool, int, str, dict) and type(value) is hint


def _choose(value: Any, choices: Any) -> Any:
    # YAML reads `no` as false.
    texts = {str(choice): choice for choice in choices} | ({"False": "no"} if "no" in choices else {})
    if str(value) in texts:
        return texts[str(value)]
    # PEFT writes `pissa_niter_[number of iters]` for `pissa_niter_16` and others.
    prefixes = tuple(text.partition("[")[0] for text in texts if "[" in text)
    return value if prefixes and str(value).startswith(prefixes) else _refuse(value)


def _refuse(value: Any, arguments: tuple[Any, ...] = ()) -> Any:
    raise TypeError


def _to_none(value: Any, arguments: tuple[Any, ...]) -> None:
    return None if value is None else _refuse(value)


def _to_bool(value: Any, arguments: tuple[Any, ...]) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    return BOOLEANS[text] if isinstance(value, str | int) and text in BOOLEANS else _refuse(value)


def _to_int(value: Any, arguments: tuple[Any, ...]) -> int:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        return _refuse(value)
    if isinstance(value, Integral):
        return int(value)
    try:
        return int(value) if isinstance(value, str) else _round_exactly(float(value))
    except ValueError:
        return _round_exactly(float(value))


def _round_exactly(number: float) -> int:
    return int(number) if number.is_integer() else _refuse(number)


def _to_float(value: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        return _refuse(value)
    return float(value) if isinstance(value, str) else value


def _to_str(value: Any, arguments: tuple[Any, ...]) -> str:
    return fspath(value) if isinstance(value, str | PathLike) else _refuse(value)


def _to_dict(value: Any, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        return _refuse(value)
    key_hint, value_hint = arguments or (Any, Any)
    return {_convert(key, key_hint): _convert(entry, value_hint) for key, entry in value.items()}


def _to_list(value: Any, arguments: tuple[Any, ...]) -> list[Any]:
    if value is None or isinstance(value, dict):
        return _refuse(value)
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return [_convert(entry, arguments[0] if arguments else Any) for entry in entries]


def _to_tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        return _refuse(value)
    has_any_length = not arguments or Ellipsis in arguments
    hints = [(*arguments, Any)[0]] * len(value) if has_any_length else arguments
    return tuple(_convert(entry, hint) for entry, hint in zip(value, hints, strict=True))


CONVERTERS = {
    NoneType: _to_none,
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    dict: _to_dict,
    list: _to_list,
    tuple: _to_tuple,
}
"""Functions that convert a value to a type, given the arguments of the type. Values of other types are kept."""


def _describe(hint: Any) -> str:
    """Describes a type for an error message, for example `an integer or null`."""
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        members = sorted(get_args(hint), key=lambda member: member is NoneType)
        return " or ".join(dict.fromkeys(map(_describe, members)))
    if origin is Literal:
        return f"one of {list(get_args(hint))}"
    if isinstance(origin, type) and issubclass(origin, Enum):
        return f"one of {[member.value for member in origin]}"
    name = NAMES.get(origin, getattr(origin, "__name__", str(origin)))
    entries = PLURALS.get(next(iter(get_args(hint)), None)) if origin is list else None
    return f"{name} of {entries}" if entries else name
