"""Text normalization, which recognizes equal texts without a model."""

import unicodedata


# Punctuation that changes the meaning of a word: C#, 5%, R&D, @name, -5, A-.
_MEANINGFUL = "#%&@-"

# Signs that have a meaning if they stand alone: 6 / 2, 6 * 2.
_OPERATORS = {"/", "*"}

# Decompositions that NFKC would replace by plain digits: 10², H₂O, ½.
_KEPT_DECOMPOSITIONS = ("<super>", "<sub>", "<fraction>")


def normalize_text(text: str) -> str:
    """
    Removes differences that never change the meaning: case, punctuation around words, and extra white space.

    The steps are:

    1. Unicode is normalized with NFKC and case-folded. Superscripts, subscripts and fractions stay. Dashes and minus
       signs become `-`.
    2. Punctuation is stripped from both ends of each word. A number keeps its leading decimal point. The signs `#`,
       `%`, `&`, `@` and `-` stay, and so do `/` and `*` that stand alone.
    3. White space is collapsed.

    Punctuation inside words stays (`3.5`, `don't`, `1,000`), so texts with different meanings stay different. Articles
    and spelling are left to a model. A text that is only punctuation is kept, so only white space becomes empty.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: The normalized text. A second normalization changes nothing.

    Example:

    ```python
    >>> normalize_text(' "The  Appaloosa." ')
    'the appaloosa'
    >>> normalize_text("-5"), normalize_text("5!"), normalize_text("...")
    ('-5', '5', '...')
    ```
    """
    words = _normalize_unicode(_normalize_unicode(text).casefold()).split()
    stripped = [word for word in map(_strip_punctuation, words) if word]
    return " ".join(stripped or words)


def _normalize_unicode(text: str) -> str:
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFC", text)
    text = unicodedata.normalize("NFC", "".join(map(_normalize_character, composed)))
    return "".join("-" if unicodedata.category(c) == "Pd" or c == "\N{MINUS SIGN}" else c for c in text)


def _normalize_character(character: str) -> str:
    is_kept = unicodedata.decomposition(character).startswith(_KEPT_DECOMPOSITIONS)
    return character if is_kept else unicodedata.normalize("NFKC", character)


def _strip_punctuation(word: str) -> str:
    if word in _OPERATORS:
        return word
    start, end = 0, len(word)
    while end and _is_stripped(word[end - 1]):
        end -= 1
    while start < end and _is_stripped(word[start]):
        start += 1
    if start < end and word[start].isdigit():
        start -= word[:start].endswith(".")
    return word[start:end]


def _is_stripped(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in _MEANINGFUL
