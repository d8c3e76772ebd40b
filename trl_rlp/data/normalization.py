"""When two texts count as the same text, so that no model need be asked."""

import unicodedata


# Punctuation that changes what a word says: C#, 5 %, R&D, @name, -5, A-.
_MEANINGFUL = "#%&@-"

# Other signs that do so where they stand alone: 6 / 2, 6 * 2.
_OPERATORS = {"/", "*"}

# What NFKC would make plain digits of: 10², H₂O, ½.
_RAISED = ("<super>", "<sub>", "<fraction>")


def normalize_text(text: str) -> str:
    """
    Gives the text without what never changes its meaning: case, outer punctuation of words, surplus white space.

    Unicode is brought to one form (NFKC, but raised and lowered characters and fractions stay) and case-folded, dashes
    and minus signs become `-`; punctuation is taken off both ends of each word, but a number keeps its leading decimal
    point, and `#`, `%`, `&`, `@`, `-` stay, as do `/` and `*` that stand alone. Inner punctuation stays too (`3.5`,
    `don't`, `1,000`), so what is merged here is merged safely; articles and spelling are left to a model. A text of
    punctuation alone is kept, so only white space becomes empty.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: the normalized text; normalizing it again changes nothing.

    Example:

    ```python
    >>> normalize_text(' "The  Appaloosa." ')
    'the appaloosa'
    >>> normalize_text("-5"), normalize_text("5!"), normalize_text("...")
    ('-5', '5', '...')
    ```
    """
    words = _one_form(_one_form(text).casefold()).split()
    stripped = [word for word in map(_strip_punctuation, words) if word]
    return " ".join(stripped or words)


def _one_form(text: str) -> str:
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFC", text)
    text = unicodedata.normalize("NFC", "".join(map(_compatible, composed)))
    return "".join("-" if unicodedata.category(c) == "Pd" or c == "\N{MINUS SIGN}" else c for c in text)


def _compatible(character: str) -> str:
    is_raised = unicodedata.decomposition(character).startswith(_RAISED)
    return character if is_raised else unicodedata.normalize("NFKC", character)


def _strip_punctuation(word: str) -> str:
    if word in _OPERATORS:
        return word
    start, end = 0, len(word)
    while end and _is_outer(word[end - 1]):
        end -= 1
    while start < end and _is_outer(word[start]):
        start += 1
    if start < end and word[start].isdigit():
        start -= word[:start].endswith(".")
    return word[start:end]


def _is_outer(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in _MEANINGFUL
