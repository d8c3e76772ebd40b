"""What a language model's answer says of two outputs that it was shown as A and B."""

import re


_LETTER = r"\b(?P<letter>[AB])\b"
_NOUN = r"(?i:answer|choice|letter|option|output|preference|response|verdict|winner)"
_THING = rf"(?:{_NOUN} )?{_LETTER}"

# What dresses a letter up: LaTeX commands, tags, emphasis, quotes and brackets.
_MARKUP = re.compile(r"\\\w+|</?\w+>|[*_`#\"“”()\[\]{}$]")

# "The better response is: A", "Preferred: A", "I would choose option A, since it is true"
_NAMED = re.compile(
    rf"(?:(?i:so|thus|therefore|overall|hence|the|my|final|correct|better|best|preferred|one)[, ]+)*"
    rf"(?:(?:{_NOUN}|(?i:better|best|preferred|one))(?: is:?|:)|(?i:(?:i(?:'d| would)? )?(?:choose|pick|prefer)))"
    rf" {_THING}(?:,? (?:as|because|for|since)\b.*)?"
)
# "A, because it is true"
_REASONED = re.compile(rf"{_THING}[,:.]? (?:as|because|since)\b.*")
# "I think Response A is clearly better than Response B"
_PRAISED = re.compile(
    rf"(?P<before>.*?)\b{_THING} (?:wins|(?:is|was|seems)"
    r"(?: (?:clearly|definitely|generally|much|overall|significantly|slightly|the|a))*"
    r" (?:better|best|preferable|preferred|superior"
    r"|(?:more|most) (?:accurate|complete|concise|correct|helpful|informative|relevant)))"
    r"(?= (?:and|answer|as|because|choice|for|in|one|option|response|since|than|to)\b|[,:]|$).*"
)
_WITHHELD = re.compile(
    r"\b(?:cannot|hardly|if|neither|never|nor|not|rarely|unless|whether|why)\b|n['’]t\b", re.IGNORECASE
)


def verdict(answer: str) -> str | None:
    """
    Reads which of A and B an answer calls better, where it does so plainly and names one only.

    A letter alone on the first or the last line is the verdict, whatever else is said ("B", "**B**", "[[B]]"). Else
    sentences count that name the choice ("The better response is B", "I prefer B", "B, because it is true") or praise
    it ("Response B is better than Response A"). A heading ("Response A:"), blame ("Response A is worse"), a tie and
    an article ("A tie") are no verdicts; of what stands before a `</think>` nothing counts, nor of a thought that was
    cut off.

    Args:
        answer (`str`):
            What the model said, perhaps cut off.

    Returns:
        `str`: `"A"` or `"B"`, or `None` where it says neither or both.

    Example:

    ```python
    >>> from trl_rlp.data.judges.verdicts import verdict

    >>> verdict("**B**. It is right, and A is not."), verdict("Response A is worse."), verdict("A tie.")
    ('B', None, None)
    ```
    """
    if "<think>" in answer and "</think>" not in answer:
        return None
    lines = [" ".join(_MARKUP.sub(" ", line).split()) for line in answer.rpartition("</think>")[2].splitlines()]
    lines = [line for line in lines if line]
    alone = {line.rstrip(" .!:") for line in lines[:1] + lines[-1:] if len(lines) == 1 or not line.endswith(":")}
    found = alone & {"A", "B"}
    if not found:
        found = {letter for line in lines for letter in map(_of_sentence, _sentences(line)) if letter}
    if len(lines) == 1 and (match := re.fullmatch(rf"{_NOUN} {_LETTER}\W*", lines[0])):
        found.add(match["letter"])
    return found.pop() if len(found) == 1 else None


def _sentences(line: str) -> list[str]:
    return [sentence.strip(" .!;") for sentence in re.split(r"(?<=[.!?;])\s+", line)]


def _of_sentence(sentence: str) -> str | None:
    if match := _NAMED.fullmatch(sentence) or _REASONED.fullmatch(sentence):
        return match["letter"]
    match = _PRAISED.fullmatch(sentence)
    if match is None or _WITHHELD.search(match["before"]):
        return None
    rest = re.sub(rf"\bthan {_THING}", "", sentence)  # of "A than B" the other letter is no second verdict
    return match["letter"] if {*re.findall(r"\b[AB]\b", rest)} == {match["letter"]} else None
