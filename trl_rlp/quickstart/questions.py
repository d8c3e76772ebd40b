"""Short questions with known answers, and the rule that says which of them are used for what."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset


QUESTIONS = Path(__file__).parent / "questions.jsonl"

SEED = 2403
"""Seed of the split; training and sampling have seeds of their own."""

PLACES = ("demonstrations",) * 2 + ("preferences",) * 3 + ("unlabeled",) * 3 + ("heldout",) * 2
"""Ten places, dealt round the questions of each kind: what share of them serves what."""

PARTS = tuple(dict.fromkeys(PLACES))

WRONG_MAJORITY_KINDS = (
    "minus",
    "past tense",
    "yes or no",
    "category",
    "larger or smaller",
    "colour",
    "animal",
)
"""Kinds on which the model's majority was mostly wrong in earlier trials. They are kept on purpose."""


@dataclass(frozen=True)
class Question:
    """
    A question and what counts as right.

    Args:
        kind (`str`):
            What sort of question it is.
        question (`str`):
            Its text.
        answers (`tuple[str, ...]`):
            Accepted answers; the first is the one that demonstrations give.
    """

    kind: str
    question: str
    answers: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the policy reads before it answers."""
        return f"Question: {self.question}\nAnswer:"


def load_questions() -> list[Question]:
    """
    Gives all questions of the package, in the order of the file.

    Returns:
        `list[Question]`.
    """
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [Question(row["kind"], row["question"], tuple(row["answers"])) for row in rows]


def split_questions(questions: Sequence[Question], seed: int = SEED) -> dict[str, list[Question]]:
    """
    Says which questions serve what, by a rule that knows the kinds and never the model.

    Every question is used, once. Within each kind the questions are shuffled and dealt round the shuffled
    [`PLACES`], so each part has all kinds in about the same proportions. Each part is then ordered so that its
    beginnings have them too: a run that has time for half of the questions takes the first half.

    Args:
        questions (`Sequence[Question]`):
            All questions.
        seed (`int`, *optional*, defaults to `2403`):
            Decides both shuffles.

    Returns:
        `dict[str, list[Question]]`: `demonstrations` (π_SFT learns from them), `preferences` (D is about them),
        `unlabeled` (U) and `heldout` (nothing is trained on them).
    """
    by_kind = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    parts = {part: [] for part in PARTS}  # (place within the kind's share of the part in [0, 1], kind, question)
    for kind, members in sorted(by_kind.items()):
        generator = np.random.default_rng([seed, *kind.encode()])
        members = [members[place] for place in generator.permutation(len(members))]
        places = generator.permutation(PLACES)
        dealt = {part: [] for part in PARTS}
        for number, question in enumerate(members):
            dealt[places[number % len(places)]].append(question)
        for part, share in dealt.items():
            parts[part] += [((rank + 0.5) / len(share), kind, question) for rank, question in enumerate(share)]
    return {
        part: [question for *_, question in sorted(entries, key=lambda entry: entry[:2])]
        for part, entries in parts.items()
    }


def prompt_dataset(questions: Sequence[Question]) -> Dataset:
    """
    Gives questions as prompts.

    Args:
        questions (`Sequence[Question]`):
            Questions.

    Returns:
        `datasets.Dataset`: `prompt`, `answers` (all that is accepted), `kind`, `question`.
    """
    return Dataset.from_list(
        [
            {"prompt": entry.prompt, "answers": list(entry.answers), "kind": entry.kind, "question": entry.question}
            for entry in questions
        ]
    )


def demonstration_dataset(questions: Sequence[Question]) -> Dataset:
    """
    Gives questions with their answers, for supervised fine-tuning.

    Args:
        questions (`Sequence[Question]`):
            Questions.

    Returns:
        `datasets.Dataset`: TRL's prompt-completion format.
    """
    return Dataset.from_list([{"prompt": entry.prompt, "completion": f" {entry.answers[0]}"} for entry in questions])
