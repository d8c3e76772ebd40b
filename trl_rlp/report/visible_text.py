"""Text for the page: messages as text, and a limit on the length."""

import json
from typing import Any

from trl_rlp.data.turns import message_text


MAX_CHARACTERS = 20_000
"""Largest number of characters of a text that the page holds. A longer text ends with a note that says so."""


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
