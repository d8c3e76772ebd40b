"""Short questions with known answers, and their split into training and evaluation sets."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset


QUESTIONS = Path(__file__).parent / "questions.jsonl"

SEED = 2403
"""Seed of the split. Training and sampling have their own seeds."""

SLOTS = ("demonstrations",) * 2 + ("preferences",) * 3 + ("unlabeled",) * 3 + ("heldout",) * 2
"""How ten questions of one kind are distributed over the parts."""

PARTS = tuple(dict.fromkeys(SLOTS))

WRONG_MAJORITY_KINDS = (
    "minus",
    "past tense",
    "yes or no",
    "category",
    "larger or smaller",
    "colour",
    "animal",
)
"""Kinds for which the majority of the model's completions was mostly wrong in earlier runs, kept on purpose."""


@dataclass(frozen=True)
class Question:
    """
    A question and its accepted answers.

    Args:
        kind (`str`):
            Type of question, for example `"sum"`.
        question (`str`):
            Text of the question.
        answers (`tuple[str, ...]`):
            Accepted answers. Demonstrations use the first one.
    """

    kind: str
    question: str
    answers: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """Prompt for the policy: `Question: ...` and `Answer:` on two lines."""
        return f"Question: {self.question}\nAnswer:"


def load_questions() -> list[Question]:
    """
    Loads all questions of the package.

    Returns:
        `list[Question]`: The questions, in the order of the file.
    """
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [Question(row["kind"], row["question"], tuple(row["answers"])) for row in rows]


def split_questions(questions: Sequence[Question], seed: int = SEED) -> dict[str, list[Question]]:
    """
    Splits questions into four parts. The split depends on the kinds of question and never on a model.

    Every question is used exactly once. In plain terms, the split works as follows:

    1. The questions of each kind are shuffled.
    2. They are assigned to the parts in the shuffled order of [`SLOTS`]. All parts get about the same mix of kinds.
    3. Each part is sorted to have this mix in its first questions, too. A run with time for half of the questions
       takes the first half.

    Args:
        questions (`Sequence[Question]`):
            All questions.
        seed (`int`, *optional*, defaults to `2403`):
            Seed of both shuffles.

    Returns:
        `dict[str, list[Question]]`: `demonstrations` (to train π_SFT), `preferences` (for D), `unlabeled` (U) and
        `heldout` (never trained on).

    Example:

    ```python
    >>> from trl_rlp.quickstart import load_questions, split_questions

    >>> {name: len(questions) for name, questions in split_questions(load_questions()).items()}
    {'demonstrations': 72, 'preferences': 107, 'unlabeled': 105, 'heldout': 74}
    ```
    """
    by_kind = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    parts = {part: [] for part in PARTS}  # (relative position among the part's questions of this kind, kind, question)
    for kind, members in sorted(by_kind.items()):
        generator = np.random.default_rng([seed, *kind.encode()])
        members = [members[index] for index in generator.permutation(len(members))]
        slots = generator.permutation(SLOTS)
        kind_parts = {part: [] for part in PARTS}
        for number, question in enumerate(members):
            kind_parts[slots[number % len(slots)]].append(question)
        for part, entries in kind_parts.items():
            parts[part] += [((rank + 0.5) / len(entries), kind, question) for rank, question in enumerate(entries)]
    return {
        part: [question for *_, question in sorted(entries, key=lambda entry: entry[:2])]
        for part, entries in parts.items()
    }


def prompt_dataset(questions: Sequence[Question]) -> Dataset:
    """
    Converts questions to a dataset of prompts.

    Args:
        questions (`Sequence[Question]`):
            Questions.

    Returns:
        `datasets.Dataset`: The columns are `prompt`, `answers` (all accepted ones), `kind` and `question`.
    """
    return Dataset.from_list(
        [
            {"prompt": entry.prompt, "answers": list(entry.answers), "kind": entry.kind, "question": entry.question}
            for entry in questions
        ]
    )


def demonstration_dataset(questions: Sequence[Question]) -> Dataset:
    """
    Converts questions to demonstrations for supervised fine-tuning.

    Args:
        questions (`Sequence[Question]`):
            The questions.

    Returns:
        `datasets.Dataset`: TRL's prompt-completion format. The completion is the first accepted answer.
    """
    return Dataset.from_list([{"prompt": entry.prompt, "completion": f" {entry.answers[0]}"} for entry in questions])
