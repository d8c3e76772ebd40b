"""Expands `~` in the paths that users pass."""

import os
import re
from dataclasses import fields
from typing import Any


HOME_PATH = re.compile(r"~[^/]*/")
"""A path below a home folder, as in `~/runs`. Text options without a slash, such as an EOS token `~`, are no paths."""


def expand_path(path: str | os.PathLike) -> str:
    """
    Expands a leading `~` to the home folder, as shells do. Everything else stays: other paths, Hub names and `$NAME`.

    Every public function with a path calls it, because YAML files, notebooks and `--name=~/path` reach no shell that
    expands `~`. Without it, a folder called `~` would appear in the working directory.

    Args:
        path (`str` or `os.PathLike`):
            A path, or a Hub name.

    Returns:
        `str`: The path as text.

    Raises:
        TypeError: If it is not a path.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from trl_rlp.storage.paths import expand_path

    >>> expand_path("~/runs") == str(Path.home() / "runs")
    True
    >>> expand_path("org/model")
    'org/model'

    ```
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"A path or a name must be text or a `Path`, got {path!r}. Pass the path of a file or folder.")
    return os.path.expanduser(os.fspath(path))


def expand_paths(value: Any) -> Any:
    """
    Expands the paths among the values of options, also inside mappings and lists. Paths become text.

    Args:
        value:
            Value of an option.

    Returns:
        The value. Text changes if it begins like a path below a home folder, such as `~/runs`.
    """
    if isinstance(value, os.PathLike) or (isinstance(value, str) and HOME_PATH.match(value)):
        return expand_path(value)
    if isinstance(value, dict):
        return {key: expand_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [expand_paths(entry) for entry in value]
    return value


def expand_fields(config: Any) -> None:
    """
    Expands the paths among the fields of a configuration, in place.

    Args:
        config:
            A dataclass. Its `__post_init__` calls this function first.
    """
    for entry in fields(config):
        value = vars(config).get(entry.name)
        if isinstance(value, str | os.PathLike | dict | list):
            setattr(config, entry.name, expand_paths(value))
