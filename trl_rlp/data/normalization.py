r"""
Text normalization, which recognizes equal texts without a model. It merges only what surely means the same.

[`normalize_text`] decides which completions are one text. It merges these differences and no others:

- Canonically equivalent Unicode (NFC): `é` as one and as two characters. Not `x²` and `x2`, nor `½` and `1/2`.
- Line ends: `\r\n` and `\n`. Not a line break and a space.
- White space at the end of the text: `yes` and `yes\n`. Not white space within the text.
- Empty lines at the beginning, and one space before the first word: `yes` and `\n yes`. Not two or more spaces, which
  may be the indentation of code.
- One full stop at the end, after a letter or a digit: `Paris` and `Paris.`. Not `5` and `5!`, nor `cd` and `cd .`.

Everything else may carry meaning, so it stays: case (`5 mW`, `5 MW`), operators, brackets, signs, quotes, primes,
currencies, kinds of dashes, punctuation and white space within the text. An equivalence with a model asks the model
about such texts. Without a model, they are different.

[`normalize_answer`] is less strict. It compares completions with answers that are known to be right.
"""

import re
import unicodedata


_LINE_END = re.compile(r"\r+\n")
_EMPTY_LINES = re.compile(r"\A\s*\n")
_ONE_SPACE = re.compile(r"\A (?=\S)")
_FULL_STOP = re.compile(r"(?<=[^\W_])\.\Z")

# A whole word of at least two letters. A word next to a digit or a sign is often a name in code or an option. After a
# number, `mg` and `Mg` (or `pa` and `Pa`) are different units.
_UNIT = r"(?<=\d\s)[mMpP][^\W\d_](?!\w)"
_WORD = re.compile(rf"(?<![\w$#@&+=<>/\\^~%])(?<!(?<!\w)-)(?!{_UNIT})[^\W\d_]{{2,}}(?![\w$#@&+=<>/\\^~%(\[])")
_ARTICLE = re.compile(r"\AA(?= [^\W\d_]{2})")
_END_MARKS = re.compile(r"(?:(?<=[^\W\d_]{2})|(?<=[^\W\d_]{2}[\"'\u201d\u2019\u00bb]))[.,;:!\u2026]+\Z")
_QUOTES = ('""', "''", "\u201c\u201d", "\u2018\u2019", "\u00ab\u00bb")


def normalize_text(text: str) -> str:
    r"""
    Removes differences that surely do not change the meaning: Unicode forms, outer white space and a last full stop.

    The steps are:

    1. Unicode is normalized with NFC, and `\r\n` becomes `\n`.
    2. White space at the end and empty lines at the beginning are removed. So is a single space before the first word,
       unless another line begins with white space.
    3. One full stop at the end is removed if a letter or a digit is before it.

    Case, punctuation, white space within the text and all signs stay, because they may carry meaning.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: The normalized text. Only white space becomes empty. A second normalization changes nothing.

    Example:

    ```python
    >>> normalize_text(" Paris.\n"), normalize_text("paris"), normalize_text("5!")
    ('Paris', 'paris', '5!')
    ```
    """
    text = _LINE_END.sub("\n", unicodedata.normalize("NFC", text))
    text = _EMPTY_LINES.sub("", text).rstrip()
    if not re.search(r"\n[^\S\n]", text):
        text = _ONE_SPACE.sub("", text)
    return _FULL_STOP.sub("", text)


def normalize_answer(text: str) -> str:
    """
    Normalizes a completion or a known answer, for comparing the two. It also ignores some case and punctuation.

    After [`normalize_text`], these differences are removed too:

    - All white space at the beginning.
    - Quotation marks around the whole text, and white space inside of them.
    - `.`, `,`, `;`, `:`, `!` and `…` at the end, after a word of at least two letters, also if it is quoted.
    - The case of the first letter of a word of at least two letters, if the other letters are lower case. Also `A` as
      the first word of several.

    Other words keep their case, because it may belong to the word: units (`mW` and `MW`, `5 mm` and `5 Mm`),
    abbreviations (`US`), names (`iPhone`), variables (`x`), and words next to digits or signs (`x1`, `foo_bar`).
    Articles and spelling stay.

    Args:
        text (`str`):
            A completion, or an accepted answer.

    Returns:
        `str`: The normalized text. A second normalization changes nothing.

    Example:

    ```python
    >>> normalize_answer('"The Appaloosa!"'), normalize_answer("5 MW."), normalize_answer("x != y")
    ('the appaloosa', '5 MW', 'x != y')
    ```
    """
    previous = None
    while text != previous:
        previous, text = text, _normalize_answer_once(text)
    return text


def _normalize_answer_once(text: str) -> str:
    text = _END_MARKS.sub("", normalize_text(text.strip()))
    if len(text) > 2 and text[0] + text[-1] in _QUOTES and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1]
    text = _ARTICLE.sub("a", text)
    return _WORD.sub(lambda match: match[0].lower() if match[0][1:].islower() else match[0], text)
