"""The comparison of completions with anchors: whether a completion means what the initial policy's majority means."""

import functools
import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from trl_rlp.data.anchors.semantic_anchors import Anchor, SemanticAnchors, prompt_key
from trl_rlp.data.groups.equivalence import Equivalence, ask_equivalence, require_equivalence
from trl_rlp.data.groups.instruction import (
    list_instruction_columns,
    read_instructions,
    require_instruction_column,
)
from trl_rlp.storage.processes import process_state, share_work


CACHE_SIZE = 2**20
"""Number of verdicts that are remembered. Each takes about a hundred bytes."""


class _Question(NamedTuple):
    """A completion with an anchor."""

    key: int
    prompt: str
    anchor: Anchor
    normalized: str


class AnchorComparison:
    """
    Compares completions with anchors, and remembers the verdicts.

    A completion means what the anchor means if it equals a member of the anchor's group after `equivalence.normalize`,
    or if the equivalence says that the anchor and the completion mean the same. An empty completion does not. The
    completions of a prompt are thus compared with the answer of the initial policy and never with each other.

    Each text of a prompt is asked about once, also if it was sampled many times. The verdicts are remembered under
    short hashes of the prompt and the text as it was sampled. The oldest are forgotten after a million. Each process
    remembers its own.

    Args:
        anchors ([`SemanticAnchors`]):
            The anchors.
        equivalence ([`Equivalence`]):
            Decides whether a completion means the same as an anchor.

    Attributes:
        num_questions (`int`): Number of pairs that this process has asked the equivalence about.

    Raises:
        TypeError: If `anchors` are not anchors, or `equivalence` is not an object with the members of [`Equivalence`].

    Example:

    ```python
    >>> comparison = AnchorComparison(anchors, ExactMatch())
    >>> comparison.compare({"prompt": ["2 + 2?", "2 + 2?", "Why?"], "completion": ["4.", "5", "4"]})
    [True, False, None]
    ```
    """

    def __init__(self, anchors: SemanticAnchors, equivalence: Equivalence):
        if not isinstance(anchors, SemanticAnchors):
            raise TypeError(
                f"`anchors` must be `SemanticAnchors`, got `{type(anchors).__name__}`. Make them with "
                "`SemanticAnchors.from_samples`, or load them with `SemanticAnchors.load`."
            )
        require_equivalence(equivalence)
        self.anchors = anchors
        self.equivalence = equivalence
        self.num_questions = 0
        self._verdicts: dict[int, bool] = {}
        self._member_texts: dict[str, frozenset[str]] = {}

    def compare(self, columns: Mapping[str, list], *, share_questions: bool = False) -> list[bool | None]:
        """
        Compares completions with the anchors of their prompts, in at most one call of the equivalence.

        If the equivalence fails, nothing of the call is remembered.

        Args:
            columns (`Mapping[str, list]`):
                Columns `prompt`, `completion` (text), and the one that the equivalence names as the instruction.
            share_questions (`bool`, *optional*, defaults to `False`):
                Whether the processes of `accelerate launch` share the questions and what they remember. Each of them
                must then call the method with the same columns, and each gets the same verdicts. By default, each
                process compares its own completions.

        Returns:
            `list[bool | None]`: Whether each completion means what the anchor means. `None` without an anchor, also
            for an unknown prompt.

        Raises:
            TypeError, ValueError: If the column of the instruction is missing or holds something else than text.
            Exception: What the equivalence raises.
        """
        require_instruction_column(columns, self.equivalence, "columns")
        questions = self._build_questions(columns)
        verdicts = self._recall(questions, share_questions)
        # The first row of each text that is new for its prompt. The text is asked as it was sampled, and so it is
        # remembered. An answer about an equal text after normalization could be another one.
        new: dict[int, int] = {}
        for row, (question, verdict) in enumerate(zip(questions, verdicts, strict=True)):
            if question is not None and verdict is None:
                new.setdefault(question.key, row)
        if new:
            ask = functools.partial(self._ask, columns, questions)
            answers = share_work(list(new.values()), ask) if share_questions else ask(list(new.values()))
            found = dict(zip(new, answers, strict=True))
            self._remember(found)
            verdicts = [
                found[question.key] if question is not None and verdict is None else verdict
                for question, verdict in zip(questions, verdicts, strict=True)
            ]
        return verdicts

    def _build_questions(self, columns: Mapping[str, list]) -> list[_Question | None]:
        questions: list[_Question | None] = []
        for prompt, completion in zip(columns["prompt"], columns["completion"], strict=True):
            anchor = self.anchors.find(prompt)
            if anchor is None:
                questions.append(None)
                continue
            name, normalized = prompt_key(prompt), self.equivalence.normalize(completion)
            questions.append(_Question(_hash(name, completion), name, anchor, normalized))
        return questions

    def _recall(self, questions: list[_Question | None], share_questions: bool) -> list[bool | None]:
        """Returns the verdicts that need no question, and None for all others."""

        def recall(processes: list[int]) -> list[list[bool | None]]:
            return [[question and self._recall_one(question) for question in questions] for _ in processes]

        if not share_questions:
            return recall([0])[0]
        known = share_work(range(process_state().num_processes), recall)
        return [next((verdict for verdict in row if verdict is not None), None) for row in zip(*known, strict=True)]

    def _recall_one(self, question: _Question) -> bool | None:
        if not question.normalized:
            return False
        if question.prompt not in self._member_texts:
            self._member_texts[question.prompt] = frozenset(map(self.equivalence.normalize, question.anchor.members))
        is_member = question.normalized in self._member_texts[question.prompt]
        return True if is_member else self._verdicts.get(question.key)

    def _ask(self, columns: Mapping[str, list], questions: list[_Question | None], rows: list[int]) -> list[bool]:
        if not rows:  # a process without a share
            return []
        names = ["prompt", "completion", *list_instruction_columns(self.equivalence)]
        asked = {name: [columns[name][row] for row in rows] for name in names}
        instructions = read_instructions(asked, self.equivalence, "columns")
        anchors = [questions[row].anchor.text for row in rows]
        verdicts = ask_equivalence(self.equivalence, instructions, anchors, asked["completion"])
        self.num_questions += len(rows)
        return verdicts

    def _remember(self, verdicts: dict[int, bool]) -> None:
        self._verdicts |= verdicts
        # Listed at once, because a dictionary takes longer to find its first key the more keys were deleted before it.
        for key in list(islice(self._verdicts, max(len(self._verdicts) - CACHE_SIZE, 0))):
            del self._verdicts[key]


def _hash(name: str, completion: str) -> int:
    content = f"{len(name)} {name}{completion}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
