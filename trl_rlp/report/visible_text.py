"""Text for the page: messages as text, characters that are not visible made visible, and a limit on the length."""

import json
import re
from typing import Any

from trl_rlp.data.turns import message_text


MAX_CHARACTERS = 20_000
"""Largest number of characters of a text that the page holds. A longer text ends with a note that says so."""

_HIDDEN = re.compile(
    # controls, marks that change the direction of text, other characters without width, and half surrogates
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ud800-\udfff\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    # what Unicode keeps free of characters
    "\ufdd0-\ufdef" + "".join(chr(end + 0xFFFE) + chr(end + 0xFFFF) for end in range(0, 0x110000, 0x10000)) + "]"
    # a joiner or a variation selector, the second one of two
    "|(?<=[\u200c\u200d])[\u200c\u200d\ufe0e\ufe0f]|(?<=[\ufe0e\ufe0f])[\ufe0e\ufe0f]"
)
"""
Characters that nobody can see. Line feeds and tabs stay as they are, and so do single joiners and the selectors of
text and emoji, which scripts and emoji need.
"""


def show_hidden(text: str) -> str:
    """
    Replaces characters that nobody can see by their names, so that a text cannot pretend to be another one.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: Valid Unicode, with names such as `⟨U+202E⟩`.

    Example:

    ```python
    >>> from trl_rlp.report.visible_text import show_hidden

    >>> show_hidden("red\x1b[0m")
    'red⟨U+001B⟩[0m'

    ```
    """
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)


def cut_text(text: str, limit: int = MAX_CHARACTERS) -> str:
    """
    Cuts a text that is longer than a limit, and adds a note with its length.

    Args:
        text (`str`):
            Any text.
        limit (`int`, *optional*, defaults to `20000`):
            Largest number of characters.

    Returns:
        `str`: The text, or its start and the note.
    """
    return text if len(text) <= limit else f"{text[:limit]} … [cut here: {len(text):,} characters]"


def plain_text(value: Any) -> str:
    """
    Converts a prompt or a completion to text. It accepts any value, because a folder may hold anything.

    Args:
        value:
            Text or messages. A single message loses its role. Anything else becomes JSON.

    Returns:
        `str`: The text. `None` is empty.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        if len(value) == 1:
            return message_text(value[0])
        return "\n".join(f"{message.get('role')}: {message_text(message)}" for message in value)
    return json.dumps(value, ensure_ascii=False, default=str)
