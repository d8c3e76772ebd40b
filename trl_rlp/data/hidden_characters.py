"""Characters that nobody can see, made visible for what a page or a console shows."""

import regex


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
    >>> from trl_rlp.data.hidden_characters import show_hidden

    >>> show_hidden("red\x1b[0m")
    'red⟨U+001B⟩[0m'

    ```
    """
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)
