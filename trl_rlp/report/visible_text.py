"""Text for the page: messages as text, characters that are not visible made visible, and a limit on the length."""

import json
from typing import Any

import regex

from trl_rlp.data.turns import message_text


MAX_CHARACTERS = 20_000
"""Largest number of characters of a text that the page holds. A longer text ends with a note that says so."""

_HIDDEN = regex.compile(
    # controls, half surrogates, ends of lines and paragraphs, and what Unicode calls ignorable or keeps free
    r"(?V1)[[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\p{Noncharacter_Code_Point}\u2800\ufff9-\ufffb]"
    r"--[\t\n\u200c\u200d\ufe0e\ufe0f]]"
    # a joiner or a variation selector, the second one of two
    r"|(?<=[\u200c\u200d])[\u200c\u200d\ufe0e\ufe0f]|(?<=[\ufe0e\ufe0f])[\ufe0e\ufe0f]"
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
