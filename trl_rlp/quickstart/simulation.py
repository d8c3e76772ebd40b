"""Human preferences that are simulated from known answers, similar to AlpacaFarm's simulated annotators."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.validation import require_samples
from trl_rlp.evaluation.policy_pairs import is_correct


LABEL_NOISE = 0.25


def simulate_preferences(
    samples: Dataset,
    answers: Sequence[Sequence[str]],
    pairs_per_prompt: int = 2,
    label_noise: float = LABEL_NOISE,
    seed: int = 0,
) -> Dataset:
    """
    Simulates human preferences: pairs right with wrong completions, prefers the right one, and flips some labels.

    Only finished completions are used. The wrong completions of a prompt's pairs have different texts after
    normalization. The right ones may repeat. Prompts without a right or without a wrong completion are skipped.

    Args:
        samples ([`~datasets.Dataset`]):
            Samples of π_SFT: `prompt` (text), `completions`, `finished`.
        answers (`Sequence[Sequence[str]]`):
            Accepted answers, one entry per row of `samples`.
        pairs_per_prompt (`int`, *optional*, defaults to `2`):
            Maximum number of pairs per prompt, at least 1.
        label_noise (`float`, *optional*, defaults to `0.25`):
            Probability that a label is flipped, in [0, 1]. The default is AlpacaFarm's.
        seed (`int`, *optional*, defaults to `0`):
            Seed for choosing the pairs and the flipped labels. The pairs of a row depend only on the seed and the
            row's index.

    Returns:
        `datasets.Dataset`: Human preferences D in TRL's preference format, with a column `is_flipped`. It is `True` if
        `chosen` is the wrong completion.

    Raises:
        ValueError: If an argument is out of range, or if no prompt yields a pair.

    Reference:
        AlpacaFarm, [Dubois et al. 2023](https://arxiv.org/abs/2305.14387). It flips 25% of the simulated labels.
    """
    samples = require_samples(samples, "samples")
    if len(answers) != len(samples):
        raise ValueError(
            f"`answers` has {len(answers)} entries, but `samples` has {len(samples)} rows. Pass one entry per row."
        )
    if not 0 <= label_noise <= 1:
        raise ValueError(f"`label_noise` must be in [0, 1], got {label_noise}. AlpacaFarm uses 0.25.")
    if pairs_per_prompt < 1:
        raise ValueError(f"`pairs_per_prompt` must be at least 1, got {pairs_per_prompt}.")
    records = []
    for number, (row, accepted) in enumerate(zip(samples, answers, strict=True)):
        generator = np.random.default_rng([seed, number])
        completions = [text for text, done in zip(row["completions"], row["finished"], strict=True) if done]
        right = [text for text in completions if is_correct(text, accepted)]
        wrong = [text for text in completions if not is_correct(text, accepted) and text.strip()]
        wrong = list({normalize_text(text): text for text in wrong}.values())
        if not right:
            continue
        for index in generator.permutation(len(wrong))[:pairs_per_prompt]:
            better, worse = right[generator.integers(len(right))], wrong[index]
            is_flipped = bool(generator.random() < label_noise)
            chosen, rejected = (worse, better) if is_flipped else (better, worse)
            records.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "is_flipped": is_flipped})
    if not records:
        raise ValueError(
            "No prompt of `samples` has both a right and a wrong finished completion, so there is no pair to label. "
            "Sample more completions per prompt, or check `answers`."
        )
    return Dataset.from_list(records)


def restore_labels(preferences: Dataset) -> Dataset:
    """
    Restores the flipped labels of simulated preferences.

    Args:
        preferences ([`~datasets.Dataset`]):
            Result of [`simulate_preferences`].

    Returns:
        `datasets.Dataset`: The columns are `prompt`, `chosen` (right) and `rejected` (wrong).
    """
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["rejected"] if row["is_flipped"] else row["chosen"],
            "rejected": row["chosen"] if row["is_flipped"] else row["rejected"],
        }
        for row in preferences
    ]
    return Dataset.from_list(rows)
