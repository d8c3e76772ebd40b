"""Reading of a language model's verdict: which of the completions A and B its answer calls better."""

import json
import re
import unicodedata
from typing import Any, NamedTuple


Labels = tuple[str, str]
"""What a question calls the first and the second completion: `("A", "B")` or `("1", "2")`."""

# The grammar of plain verdicts. It is for lower-case text in which `_mark_labels` has written the labels as <a>, <b>.
# In each sentence, the first label is the verdict.
_NOUN = "(?:answer|assistant|candidate|choice|completion|model|option|output|reply|response)"
_LABEL = "<[ab12]>"
_NAME = f"(?:the )?(?:{_NOUN} )?{_LABEL}"
_OPENER = (
    "(?:(?:after [^,.:;<>]*(?=,)|all in all|based on the above|based on this|clearly|finally|hence|i believe|i find"
    "|i think|i(?: would|'d) say|in conclusion|in my opinion|in my view|in short|in summary|overall|so|therefore|thus"
    "|to conclude|to sum up)(?: that)?,? )"
)
_SUBJECT = (
    "(?:(?:my |the )?(?:final |overall )?(?:choice|decision|judge?ment|pick|preference|selection|verdict|vote|winner"
    f"|(?:best|better|preferred|stronger|superior|winning)(?: {_NOUN}| one)?))"
)
_TITLE = (
    f"(?:(?:here is )?(?:{_SUBJECT}|(?:my |the )?(?:final |overall )?(?:conclusion|label|letter|overall|{_NOUN}))"
    f"|which (?:{_NOUN} |one )?is (?:the )?(?:best|better)(?: {_NOUN}| one)?)"
)
_CHOICE = "i(?: would|'d| will|'ll)? (?:choose|go with|pick|prefer|select|vote for)"
_PRAISE = (
    "(?:wins|is (?:(?:clearly|definitely|far|marginally|much|overall|significantly|slightly) )*"
    "(?:preferable|preferred|the (?:clear )?winner"
    f"|(?:the )?(?:best|better|stronger|superior)(?: {_NOUN}| one)?)(?: overall)?)"
)
_REASON = r"(?:[,:]? (?P<reason>(?:because|since|as (?:it|its|this|that))\b.*))"

_SENTENCE = re.compile(
    f"{_OPENER}*(?:{_SUBJECT} is:? {_NAME}|{_CHOICE} {_NAME}(?: (?:over|to) {_NAME})?"
    f"|{_NAME} {_PRAISE}(?: (?:over|than|to) {_NAME})?){_REASON}?"
)
_NAME_WITH_REASON = re.compile(f"{_OPENER}*{_NAME}{_REASON}")
_NAME_AT_END = re.compile(f"{_OPENER}+{_NAME}")
_TITLED = re.compile(f"{_TITLE} ?[:=–—-] ?(?P<rest>.+)")
_TITLED_NAME = re.compile(f"{_NAME}{_REASON}?")
# A line, or a whole answer. "The answer is A" could also be about the question that the completions answer.
_LINE = re.compile(rf"{_LABEL}\)?")
_ENTRY = re.compile(rf"{_LABEL}\. ")
_WHOLE_ANSWER = re.compile(f"{_NAME}|(?:so,? )?(?:the )?(?:correct |final |right )?answer is:? {_NAME}")

# Words in a reason, before or after a verdict that take it back.
_CONTRAST = re.compile(
    r"\b(?:although|but|despite|except|however|if|otherwise|though|unless|whereas|whether|while|yet)\b"
)
_INDECISION = re.compile(
    r"\b(?:a draw|a tie|tied|equal|equally|at random|(?:are|both) identical|coin (?:flip|toss)|i guess|it depends"
    r"|neither|undecided|unsure|not (?:certain|sure)"
    r"|(?:cannot|can't|difficult to|hard to|unable to) (?:choose|compare|decide|determine|judge|say|tell))\b"
)
_RETRACTION = re.compile(
    r"\(?(?:actually|although|apologies|but|correction|despite|edit|even|hm+|however|i (?:misread|mixed|retract)"
    r"|i (?:apologi[sz]e|stand corrected|take (?:it|that|this) back|was (?:mistaken|wrong))|just kidding"
    r"|let me re-?\w+|my (?:bad|mistake)|nevertheless|nonetheless|no(?=[,.!]|$)|oops|or|otherwise|scratch|sorry"
    r"|still|strike that|that said|though|unless|wait|whereas|while|yet"
    r"|(?:up)?on (?:a )?(?:closer|further|re-?\w+|second))\b"
    r"|.*\bchanged my mind\b"
)
_NAMED_LAST = re.compile(
    rf"(?:^|[,:] |\b(?:be|but|is|mean|meant|say|so|then|therefore|thus) )(?:the )?(?:{_NOUN} )?<([ab12])>$"
)
_CHOOSING = re.compile(r"\b(?:best|better|choose|pick|prefer|preferred|verdict|winner|wins)\b")
_OTHER = re.compile(f"{_LABEL}|\\b(?:first|former|latter|other|second)\\b")

# A line break inside a sentence. `reason: ...` is a line of its own.
_WRAP = re.compile(r"(?<=\w)[ \t]*\n(?=[a-z]{2})(?![\w ]+[:=])")
_THOUGHT = re.compile(r"<(/?)(?:reasoning|think|thinking|thought)>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)\w*[ \t]*$", re.MULTILINE)
_DELIMITED = re.compile(
    r"(?:^|(?<=[.!?]\s))(?:\[\[([^\[\]]*)\]\]|\\boxed ?\{([^{}]*)\}|<answer>([^<]*)</answer>)(?=[.!]?\s*$)",
    re.MULTILINE,
)
_LATEX = re.compile(r"\\\w+ ?\{([^{}]*)\}")
_STRUCK = re.compile(r"~~[^~\n]+~~")
_EMPHASIS = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)|</?\w[^<>]*>|<\|\w+\|>|[$\[\]]")
_QUOTED_NAME = re.compile(rf"[\"“”„'‘«»]((?:{_NOUN} )?\(?[ab12]\)?)[\"“”'«»]", re.IGNORECASE)


class _Statement(NamedTuple):
    """A verdict: the position of its sentence, the label, and whether a title such as "Verdict:" announces it."""

    position: int
    label: str
    is_titled: bool


def read_verdict(answer: str, labels: Labels = ("A", "B")) -> str | None:
    r"""
    Reads which of two completions an answer calls better. Only a plain verdict counts.

    A verdict is plain if each word of its sentence, up to a reason, belongs to a small grammar:

    - a line that is only a label: "B", "**B**", "[[B]]", "\boxed{B}", "<answer>B</answer>", or the first sentence,
    - a title and a label: "Verdict: B", "Final answer: `B`", `{"verdict": "B"}`, "| Winner | B |", or a heading,
    - a choice: "The better response is B", "I prefer B", "B, because it is true",
    - praise without a restriction: "Response B is better than Response A".

    All plain verdicts of an answer must agree. Other sentences are no verdicts: a concession ("While A is better in
    tone"), a negation, a doubt, criticism, a comparison with something else, a tie, the article "A". An answer that
    speaks of a tie, or goes on with "However", "Wait" or "so B" after its verdict, has none. Text before `</think>` is
    ignored.

    Args:
        answer (`str`):
            The model's whole answer. Do not pass an answer that was cut by the token limit. It is no verdict, because
            its next words could change it.
        labels (`tuple[str, str]`, *optional*, defaults to `("A", "B")`):
            What the question calls the completions, see [`find_labels`].

    Returns:
        `str`: One of the labels, or `None` if there is no plain verdict.

    Example:

    ```python
    >>> from trl_rlp.data.judges.verdicts import read_verdict

    >>> read_verdict("B, because it is right."), read_verdict("While A is better in tone"), read_verdict("A tie.")
    ('B', None, None)
    ```
    """
    text = unicodedata.normalize("NFKC", answer).replace("’", "'")
    text = _replace_json(_FENCE.sub("", _drop_thoughts(text)), labels)
    if text is None:
        return None
    text = _WRAP.sub(" ", _STRUCK.sub("", text))
    text = _DELIMITED.sub(lambda match: f"\nVerdict: {match[1] or match[2] or match[3]}", text)
    sentences = _split_sentences(text, labels)
    statements = [
        _Statement(position, *found)
        for position, (sentence, is_line) in enumerate(sentences)
        if (found := _read_sentence(sentence, is_line, is_only=len(sentences) == 1))
    ]
    if len({statement.label for statement in statements}) != 1 or _takes_back(statements[-1], sentences):
        return None
    return statements[0].label.upper()


def find_labels(template: str) -> Labels:
    """
    Finds what a question calls the two completions: 1 and 2 if these stand before the fields, otherwise A and B.

    Args:
        template (`str`):
            Question with `{prompt}`, `{first}` and `{second}`.

    Returns:
        `tuple[str, str]`: `("1", "2")` or `("A", "B")`.

    Example:

    ```python
    >>> from trl_rlp.data.judges.verdicts import find_labels

    >>> find_labels("{prompt} Response 1: {first} Response 2: {second} Answer with 1 or 2.")
    ('1', '2')
    ```
    """
    before_first, _, rest = template.partition("{first}")
    texts = (before_first, rest.partition("{second}")[0])
    return ("1", "2") if [re.findall(r"\b[12AaBb]\b", text)[-1:] for text in texts] == [["1"], ["2"]] else ("A", "B")


def _drop_thoughts(text: str) -> str:
    """Returns the text after the thoughts. It is empty if the answer stopped inside them."""
    tags = list(_THOUGHT.finditer(text))
    if not tags:
        return text
    return text[tags[-1].end() :] if tags[-1][1] else ""


def _replace_json(text: str, labels: Labels) -> str | None:
    """Writes "Verdict: A" for each JSON object on lines of its own. `None` if one names a tie or several labels."""
    start, pieces = 0, []
    for match in re.finditer(r"^[ \t`]*(?=\{)", text, re.MULTILINE):
        found: list[str | None] = []

        def collect(fields: list[tuple[str, Any]], found: list[str | None] = found) -> None:
            for name, value in fields:
                if re.fullmatch(_TITLE, name.lower().replace("_", " ")):
                    found.append(_read_name(str(value), labels))

        try:
            _, end = json.JSONDecoder(object_pairs_hook=collect).raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        if match.start() < start or not found or text[end:].partition("\n")[0].strip(" \t`"):
            continue
        if len(set(found)) > 1 or found[0] is None:
            return None
        pieces += [text[start : match.start()], f"\nVerdict: {found[0]}\n"]
        start = end
    return "".join([*pieces, text[start:]])


def _read_name(text: str, labels: Labels) -> str | None:
    text = _mark_labels(text.strip(), labels)
    return re.findall(_LABEL, text)[0][1].upper() if re.fullmatch(_NAME, text) else None


def _mark_labels(text: str, labels: Labels) -> str:
    """Writes the text in lower case, and the labels as <a>, <b>. A small a or b counts where it is no article."""
    if labels == ("A", "B"):
        small = rf"\([ab]\)|\b{_NOUN} [ab]\b|^[ab](?=[.)]?$)"
        text = re.sub(small, lambda match: match[0][:-2] + match[0][-2:].upper(), text, flags=re.IGNORECASE)
    letters = "".join(labels)
    return re.sub(rf"\(([{letters}])\)|\b([{letters}])\b", lambda match: f"<{match[1] or match[2]}>", text).lower()


def _split_sentences(text: str, labels: Labels) -> list[tuple[str, bool]]:
    """Returns the sentences without markup, and whether each of them is a whole line."""
    lines: list[str] = []
    is_title = False
    for raw in text.splitlines():
        line = _mark_labels(_strip_markup(raw), labels)
        if not line:
            continue
        is_name = re.fullmatch(rf"{_NAME}\)?[.!]?", line)
        if is_name and is_title:
            lines[-1] = f"{lines[-1].rstrip(':?')}: {line}"
        else:
            lines.append(line)
        is_title = not is_name and (raw.lstrip().startswith("#") or _looks_like_title(line))
    sentences = []
    for line in lines:
        first, *others = (re.sub(r"[.!;]$", "", part) for part in re.split(r"(?<=[.!?;])\s+", line))
        # "A. It is right." begins with a verdict, unless it is the entry of a list, and "B. It is wrong." follows.
        is_line = not others or (not sentences and len({line[:3] for line in lines if _ENTRY.match(line)}) == 1)
        sentences += [(first, is_line), *((other, False) for other in others)]
    return sentences


def _looks_like_title(line: str) -> bool:
    return line.endswith((":", "?")) or (len(line.split()) <= 4 and line[-1] not in ".!?;,")


def _strip_markup(line: str) -> str:
    line = re.sub(r"^\s*(?:#+|[-+•]|\d+[.)])\s+(?=\S)", "", line)
    while (inner := _LATEX.sub(r"\1", line)) != line:
        line = inner
    line = _QUOTED_NAME.sub(r"\1", _EMPHASIS.sub("", line))
    if line.lstrip().startswith("|"):
        cells = [cell.strip(" :-") for cell in line.split("|")]
        line = ": ".join(cell for cell in cells if cell)
    return re.sub(r"\s+([:.,;!?])", r"\1", " ".join(line.split()))


def _read_sentence(sentence: str, is_line: bool, is_only: bool) -> tuple[str, bool] | None:
    """Returns the label of a plain verdict, and whether a title announces it."""
    titled = _TITLED.fullmatch(sentence)
    text = titled["rest"] if titled else sentence
    patterns = [_SENTENCE, _TITLED_NAME] if titled else [_SENTENCE, _NAME_WITH_REASON, _NAME_AT_END]
    patterns += [_LINE] if is_line else []
    patterns += [_WHOLE_ANSWER] if is_only else []
    match = next((match for pattern in patterns if (match := pattern.fullmatch(text))), None)
    reason = (match and match.groupdict().get("reason")) or ""
    if match is None or _CONTRAST.search(reason) or _INDECISION.search(reason):
        return None
    return re.findall(_LABEL, text)[0][1], titled is not None


def _takes_back(statement: _Statement, sentences: list[tuple[str, bool]]) -> bool:
    """Checks whether an answer takes its last verdict back, or calls it undecided."""
    later = [text for text, _ in sentences[statement.position + 1 :]]
    # A titled verdict ends a deliberation, in which a tie may have been a possibility.
    others = later if statement.is_titled else later + [text for text, _ in sentences[: statement.position]]
    rivals = [text for text in later if _OTHER.search(text) and f"<{statement.label}>" not in text]
    return (
        any(map(_RETRACTION.match, later))
        or any(map(_INDECISION.search, others))
        or any(map(_CHOOSING.search, rivals))
        or any((last := _NAMED_LAST.search(text)) and last[1] != statement.label for text in later)
    )
