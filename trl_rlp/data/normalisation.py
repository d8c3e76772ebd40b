"""When two texts count as the same text, so that no model need be asked."""

import re
import unicodedata


# Punctuation that changes what a word says: C#, 5 %, R&D, @name.
_MEANINGFUL = "#%&@"


def normalise_text(text: str) -> str:
    """
    Gives the text without what never changes its meaning: case, outer punctuation of words, surplus white space.

    Unicode is brought to one form (NFKC) and case-folded; punctuation is taken off both ends of each word, but a
    number keeps its sign and its leading decimal point, and `#`, `%`, `&`, `@` stay. Inner punctuation stays too
    (`3.5`, `don't`, `1,000`), so what is merged here is merged safely; articles and spelling are left to a model. A
    text of punctuation alone is kept, so only white space becomes empty.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: the normalised text; normalising it again changes nothing.

    Example:

    ```python
    >>> normalise_text(' "The  Appaloosa." ')
    'the appaloosa'
    >>> normalise_text("-5"), normalise_text("5!"), normalise_text("...")
    ('-5', '5', '...')
    ```
    """
    words = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split()
    stripped = [word for word in map(_strip_punctuation, words) if word]
    return " ".join(stripped or words)


def _strip_punctuation(word: str) -> str:
    start, end = 0, len(word)
    while end and _is_outer(word[end - 1]):
        end -= 1
    while start < end and _is_outer(word[start]):
        start += 1
    if start < end and word[start].isdigit():
        start -= len(re.search(r"-?\.?$", word[:start]).group())
    return word[start:end]


def _is_outer(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in _MEANINGFUL
