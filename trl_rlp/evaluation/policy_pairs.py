"""Labeled pairs of policy samples. A refined reward model should be more accurate on them than the old one."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from trl_rlp.data.judges.judge import Judge, judge_pairs
from trl_rlp.data.normalization import normalize_answer
from trl_rlp.data.template_options import TEMPLATE_COLUMNS
from trl_rlp.data.turns import build_preference_sides
from trl_rlp.data.validation import require_sample_answers, require_samples


COLUMNS = ["prompt", "chosen", "rejected", "chosen_finished", "rejected_finished"]


def is_correct(completion: str, answers: str | Sequence[str]) -> bool:
    """
    Checks whether a completion equals one of the accepted answers after [`normalize_answer`].

    Args:
        completion (`str`):
            Text of the policy.
        answers (`str` or `Sequence[str]`):
            One or several accepted answers.

    Returns:
        `bool`: `True` for an equal text. Quotation marks around the text, punctuation at its end and the capitals of
        ordinary words do not count. A completion with an accepted answer and other words is not correct.

    Example:

    ```python
    >>> from trl_rlp.evaluation.policy_pairs import is_correct

    >>> is_correct(" Paris.", "paris"), is_correct("It is Paris", ["Paris", "City of Light"])
    (True, False)
    ```
    """
    accepted = [answers] if isinstance(answers, str) else answers
    return normalize_answer(completion) in {normalize_answer(answer) for answer in accepted}


def _build_pair(row: dict, better: int, worse: int) -> dict:
    prompt, sides = build_preference_sides(row["prompt"], [row["completions"][better], row["completions"][worse]])
    values = [prompt, *sides, row["finished"][better], row["finished"][worse]]
    return {**dict(zip(COLUMNS, values, strict=True)), **{name: row[name] for name in TEMPLATE_COLUMNS if name in row}}


def _build_dataset(samples: Dataset, pairs: list[dict]) -> Dataset:
    columns = [*COLUMNS, *(name for name in TEMPLATE_COLUMNS if name in samples.column_names)]
    return Dataset.from_dict({column: [pair[column] for pair in pairs] for column in columns})


def answer_pairs(samples: Dataset, answers: Sequence[str | Sequence[str]], seed: int = 0) -> Dataset:
    """
    Pairs a correct completion with a wrong one for each prompt, based on known answers.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions`, `finished`.
        answers (`Sequence`):
            Accepted answer or answers for each row of `samples`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of both completions. The pair of a row depends only on the seed and the row number.

    Returns:
        `datasets.Dataset`: TRL's preference format with `chosen_finished` and `rejected_finished`. Prompts without a
        correct and a wrong completion are skipped, so the dataset can be empty.

    Raises:
        TypeError: If an answer is neither text nor a list of texts.
        ValueError: If the samples are not policy samples, or `samples` and `answers` differ in length.
    """
    samples = require_samples(samples, "samples")
    require_sample_answers(answers, samples)
    pairs = []
    for index, (row, accepted) in enumerate(zip(samples, answers, strict=True)):
        correct = np.array([is_correct(completion, accepted) for completion in row["completions"]])  # (n,)
        if correct.any() and not correct.all():
            generator = np.random.default_rng([seed, index])
            better, worse = (generator.choice(np.flatnonzero(mask)) for mask in (correct, ~correct))
            pairs.append(_build_pair(row, better, worse))
    return _build_dataset(samples, pairs)


def judged_pairs(samples: Dataset, judge: Judge, seed: int = 0) -> Dataset:
    """
    Pairs two different completions of each prompt. A judge decides which one is better.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions`, `finished`.
        judge (`Callable`):
            `judge(prompts, firsts, seconds)` returns one probability in [0, 1] per pair: the probability that the
            first completion is better. Exactly 0.5 is a tie, and the pair is skipped, as is a pair with `None`. See
            [`Judge`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of both completions. The pair of a row depends only on the seed and the row number.

    Returns:
        `datasets.Dataset`: TRL's preference format with `chosen_finished` and `rejected_finished`. Prompts whose
        completions are all equal are skipped.

    Raises:
        ValueError: If the samples are not policy samples, or the judge returns a value outside [0, 1].
    """
    samples = require_samples(samples, "samples")
    candidates = []
    for index, row in enumerate(samples):
        order = np.random.default_rng([seed, index]).permutation(len(row["completions"]))
        others = [i for i in order if row["completions"][i] != row["completions"][order[0]]]
        if others:
            candidates.append((row, order[0], others[0]))
    probabilities = judge_pairs(
        judge,
        [row["prompt"] for row, _, _ in candidates],
        [row["completions"][first] for row, first, _ in candidates],
        [row["completions"][second] for row, _, second in candidates],
    )
    pairs = [
        _build_pair(row, first, second) if probability > 0.5 else _build_pair(row, second, first)
        for (row, first, second), probability in zip(candidates, probabilities, strict=True)
        if probability not in (0.5, None)
    ]
    return _build_dataset(samples, pairs)
