"""Reading of a language model's verdict: which of the completions A and B its answer calls better."""

import re


_LETTER = r"\b(?P<letter>[AB])\b"
_NOUN = r"(?i:answer|choice|letter|option|output|preference|response|verdict|winner)"
_NAMED_LETTER = rf"(?:{_NOUN} )?{_LETTER}"

# Markup around a letter: LaTeX commands, tags, emphasis, quotes and brackets.
_MARKUP = re.compile(r"\\\w+|</?\w+>|[*_`#\"“”()\[\]{}$]")

# "The better response is: A", "Preferred: A", "I would choose option A, since it is true"
_CHOICE = re.compile(
    rf"(?:(?i:so|thus|therefore|overall|hence|the|my|final|correct|better|best|preferred|one)[, ]+)*"
    rf"(?:(?:{_NOUN}|(?i:better|best|preferred|one))(?: is:?|:)|(?i:(?:i(?:'d| would)? )?(?:choose|pick|prefer)))"
    rf" {_NAMED_LETTER}(?:,? (?:as|because|for|since)\b.*)?"
)
# "A, because it is true"
_REASONED = re.compile(rf"{_NAMED_LETTER}[,:.]? (?:as|because|since)\b.*")
# "I think Response A is clearly better than Response B"
_PRAISED = re.compile(
    rf"(?P<before>.*?)\b{_NAMED_LETTER} (?:wins|(?:is|was|seems)"
    r"(?: (?:clearly|definitely|generally|much|overall|significantly|slightly|the|a))*"
    r" (?:better|best|preferable|preferred|superior"
    r"|(?:more|most) (?:accurate|complete|concise|correct|helpful|informative|relevant)))"
    r"(?= (?:and|answer|as|because|choice|for|in|one|option|response|since|than|to)\b|[,:]|$).*"
)
_NEGATION_OR_DOUBT = re.compile(
    r"\b(?:cannot|hardly|if|neither|never|nor|not|rarely|unless|whether|why)\b|n['’]t\b", re.IGNORECASE
)


def read_verdict(answer: str) -> str | None:
    """
    Reads which of A and B an answer calls better. Only a clear verdict for one of them counts.

    A letter alone on the first or the last line is the verdict ("B", "**B**", "[[B]]"). The other lines do not matter
    then. Without such a line, two kinds of sentences count:

    - sentences that name the choice ("The better response is B", "I prefer B", "B, because it is true"),
    - sentences that praise it ("Response B is better than Response A").

    A heading ("Response A:"), criticism ("Response A is worse"), a tie and the article "A" ("A tie") are not verdicts.
    Text before `</think>` is ignored. An answer that was stopped inside its reasoning has no verdict.

    Args:
        answer (`str`):
            The model's answer. It may have been stopped by the token limit.

    Returns:
        `str`: `"A"` or `"B"`, or `None` if the answer names neither or both.

    Example:

    ```python
    >>> from trl_rlp.data.judges.verdicts import read_verdict

    >>> read_verdict("B, because it is right."), read_verdict("Response A is worse."), read_verdict("A tie.")
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
        found = {letter for line in lines for letter in map(_read_sentence, _split_sentences(line)) if letter}
    if len(lines) == 1 and (match := re.fullmatch(rf"{_NOUN} {_LETTER}\W*", lines[0])):
        found.add(match["letter"])
    return found.pop() if len(found) == 1 else None


def _split_sentences(line: str) -> list[str]:
    return [sentence.strip(" .!;") for sentence in re.split(r"(?<=[.!?;])\s+", line)]


def _read_sentence(sentence: str) -> str | None:
    if match := _CHOICE.fullmatch(sentence) or _REASONED.fullmatch(sentence):
        return match["letter"]
    match = _PRAISED.fullmatch(sentence)
    if match is None or _NEGATION_OR_DOUBT.search(match["before"]):
        return None
    rest = re.sub(rf"\bthan {_NAMED_LETTER}", "", sentence)  # in "A is better than B", B is not a second verdict
    return match["letter"] if {*re.findall(r"\b[AB]\b", rest)} == {match["letter"]} else None
