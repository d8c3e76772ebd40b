"""Reads a YAML file of options."""

import re
from pathlib import Path
from typing import Any

import yaml

from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.redaction import hide_secrets


EXAMPLE = "Write `name: value`, one per line."


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, a date is text, and a key that appears twice is an error."""

    yaml_implicit_resolvers = {
        start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in known:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` appears twice", key.start_mark)
            known.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_config(path: str) -> dict[str, Any]:
    """
    Reads a YAML file of options.

    Args:
        path (`str`):
            The file.

    Returns:
        `dict[str, Any]`: Values by the names of options.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not YAML, is not a mapping, or has a key twice.
    """
    path = expand_path(path)
    try:
        config = yaml.load(Path(path).read_bytes(), Loader=_Loader)
    except OSError as error:
        raise type(error)(
            f"`--config` {path} cannot be read ({error.strerror}). Pass the path of a YAML file."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        tabs = " Indent with spaces, because YAML allows no tabs." if r"'\t'" in str(error) else ""
        reason = str(error).replace('in "<byte string>", ', "in ")  # the file is named already
        raise ValueError(f"`--config` {path} is not YAML ({hide_secrets(reason)}). {EXAMPLE}{tabs}") from error
    if not isinstance(config, dict):
        kind = "is empty" if config is None else f"is not a mapping, but holds {hide_secrets(str(config))[:60]!r}"
        raise ValueError(f"`--config` {path} {kind}. {EXAMPLE}")
    names = [key for key in config if not isinstance(key, str)]
    if names:
        raise ValueError(f"`--config` {path} has the key {names[0]!r}, which is not the name of an option. {EXAMPLE}")
    return config
