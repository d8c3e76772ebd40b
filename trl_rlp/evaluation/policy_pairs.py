"""Labeled pairs of policy outputs: what a refined reward model must be better at."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from trl_rlp.data.judges.judge import Judge, judge_pairs
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.turns import preference_sides
from trl_rlp.data.validation import require_answers_of, require_samples


COLUMNS = ["prompt", "chosen", "rejected", "chosen_finished", "rejected_finished"]


def is_correct(completion: str, answers: str | Sequence[str]) -> bool:
    """
    Says whether an output equals one of the accepted answers after normalization.

    Args:
        completion (`str`):
            What the policy said.
        answers (`str` or `Sequence[str]`):
            One accepted answer, or several.

    Returns:
        `bool`. An output that holds the answer among other words is not equal to it.

    Example:

    ```python
    >>> from trl_rlp.evaluation.policy_pairs import is_correct

    >>> is_correct(" Paris.", "paris"), is_correct("It is Paris", ["Paris", "City of Light"])
    (True, False)
    ```
    """
    accepted = [answers] if isinstance(answers, str) else answers
    return normalize_text(completion) in {normalize_text(answer) for answer in accepted}


def _pair(row: dict, better: int, worse: int) -> dict:
    prompt, sides = preference_sides(row["prompt"], [row["completions"][better], row["completions"][worse]])
    values = [prompt, *sides, row["finished"][better], row["finished"][worse]]
    return dict(zip(COLUMNS, values, strict=True))


def answer_pairs(samples: Dataset, answers: Sequence[str | Sequence[str]], seed: int = 0) -> Dataset:
    """
    Pairs a right with a wrong output of each prompt that has both, by known answers.

    Args:
        samples (`datasets.Dataset`):
            Policy samples: `prompt`, `completions`, `finished`.
        answers (`Sequence`):
            Accepted answer or answers, one entry a row of `samples`.
        seed (`int`, *optional*, defaults to `0`):
            Decides which right and which wrong output make the pair; a row's pair depends on (seed, row) alone.

    Returns:
        `datasets.Dataset`: TRL preference format with `chosen_finished` and `rejected_finished`; it has no row if no
        prompt has both a right and a wrong output.

    Raises:
        TypeError: if an answer is neither text nor a list of texts.
        ValueError: if the samples are not policy samples, or the lengths differ.
    """
    require_samples(samples, "samples")
    require_answers_of(answers, samples)
    pairs = []
    for index, (row, accepted) in enumerate(zip(samples, answers, strict=True)):
        right = np.array([is_correct(completion, accepted) for completion in row["completions"]])
        if right.any() and not right.all():
            generator = np.random.default_rng([seed, index])
            pairs.append(_pair(row, generator.choice(np.flatnonzero(right)), generator.choice(np.flatnonzero(~right))))
    return Dataset.from_dict({column: [pair[column] for pair in pairs] for column in COLUMNS})


def judged_pairs(samples: Dataset, judge: Judge, seed: int = 0) -> Dataset:
    """
    Pairs two distinct outputs of each prompt and lets a judge say which is better.

    Args:
        samples (`datasets.Dataset`):
            Policy samples: `prompt`, `completions`, `finished`.
        judge (`Callable`):
            `judge(prompts, firsts, seconds)` gives the probability in [0, 1] that the first is better, one a pair; a
            probability of exactly one half is a tie and the pair is left out. See [`judge`].
        seed (`int`, *optional*, defaults to `0`):
            Decides which outputs are paired; a row's pair depends on (seed, row) alone.

    Returns:
        `datasets.Dataset`: TRL preference format with `chosen_finished` and `rejected_finished`; prompts whose outputs
        all have the same text are left out.

    Raises:
        ValueError: if the samples are not policy samples, or the judge answers with a probability outside [0, 1].
    """
    require_samples(samples, "samples")
    drawn = []
    for index, row in enumerate(samples):
        order = np.random.default_rng([seed, index]).permutation(len(row["completions"]))
        others = [i for i in order if row["completions"][i] != row["completions"][order[0]]]
        if others:
            drawn.append((row, order[0], others[0]))
    probabilities = judge_pairs(
        judge,
        [row["prompt"] for row, _, _ in drawn],
        [row["completions"][first] for row, first, _ in drawn],
        [row["completions"][second] for row, _, second in drawn],
    )
    pairs = [
        _pair(row, first, second) if probability > 0.5 else _pair(row, second, first)
        for (row, first, second), probability in zip(drawn, probabilities, strict=True)
        if probability != 0.5
    ]
    return Dataset.from_dict({column: [pair[column] for pair in pairs] for column in COLUMNS})
