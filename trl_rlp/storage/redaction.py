"""Redaction: passwords, API keys and access tokens stay out of files, trackers and error messages."""

import json
import re
from collections.abc import Mapping
from typing import Any


_ENDS = "(?:token|api[_-]?key|access[_-]?key|password|secret|authorization)"
_SECRET = re.compile(rf"(?:^|[^a-z]){_ENDS}$")
_TEXT_TOKEN = re.compile(r"(?:bos|eos|pad|unk|sep|cls|mask|stop)_token$")
# Between words, only a name with an underscore counts: a message of YAML may say "the next token was".
_NAMED_SECRET = re.compile(
    rf"""\b(?P<name>[\w-]*{_ENDS})(?P<between>['"]?\s*[:=]\s*['"]?|(?<=_key)\s+|(?<=_token)\s+)(?:bearer\s+)?\S+""",
    flags=re.I,
)


def remove_secrets(value: Any) -> Any:
    """
    Removes entries whose name says that they are secret, such as `hub_token`, `api_key` and `password`.

    The name decides, and not the value. Tokens of a text, such as `eos_token`, and numbers stay. An entry is removed
    and not masked, so that settings with another token, or without one, are equal.

    Args:
        value:
            Mappings, lists, tuples and plain values, nested to any depth. Text that is a JSON object counts as a
            mapping.

    Returns:
        A copy of the value without the secret entries.

    Example:

    ```python
    >>> from trl_rlp.storage.redaction import remove_secrets

    >>> remove_secrets({"hub_token": "hf_abc", "model_init_kwargs": {"token": "hf_abc", "dtype": "float32"}})
    {'model_init_kwargs': {'dtype': 'float32'}}

    ```
    """
    if isinstance(value, Mapping):
        return {name: remove_secrets(entry) for name, entry in value.items() if not _is_secret(name, entry)}
    if isinstance(value, list):
        return [remove_secrets(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(map(remove_secrets, value))
    return _remove_from_json(value) if isinstance(value, str) and value.lstrip().startswith("{") else value


def hide_secrets(text: str) -> str:
    """
    Replaces what follows the name of a secret in a text by `***`, for an error message that quotes a user's file.

    Args:
        text (`str`):
            The text, such as a line of YAML.

    Returns:
        `str`: The text without the secrets.

    Example:

    ```python
    >>> from trl_rlp.storage.redaction import hide_secrets

    >>> hide_secrets("model: sft api_key: sk-abc")
    'model: sft api_key: ***'

    ```
    """

    def hide(match: re.Match) -> str:
        return f"{match['name']}{match['between']}***" if _is_secret(match["name"], "") else match[0]

    return _NAMED_SECRET.sub(hide, text)


def _is_secret(name: Any, value: Any) -> bool:
    name = str(name).lower().replace("-", "_")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return bool(_SECRET.search(name)) and not _TEXT_TOKEN.search(name) and not is_number


def _remove_from_json(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    redacted = remove_secrets(value)
    return text if redacted == value else json.dumps(redacted)
