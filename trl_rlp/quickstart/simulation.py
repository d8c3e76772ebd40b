"""Human preferences simulated from known answers, as AlpacaFarm simulates annotators."""

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
    Pairs right with wrong outputs and labels them as a noisy annotator would: right beats wrong, some labels flipped.

    Only finished outputs are shown to the annotator. The wrong outputs of a prompt's pairs are distinct texts after
    normalization; its right ones say the same. A prompt whose outputs are all right or all wrong makes no pair.

    Args:
        samples (`datasets.Dataset`):
            Samples of π_SFT: `prompt` (text), `completions`, `finished`.
        answers (`Sequence[Sequence[str]]`):
            Accepted answers, one entry a row of `samples`.
        pairs_per_prompt (`int`, *optional*, defaults to `2`):
            Most pairs of one prompt.
        label_noise (`float`, *optional*, defaults to `0.25`):
            Probability that a label is flipped, in [0, 1]. AlpacaFarm's.
        seed (`int`, *optional*, defaults to `0`):
            Decides the pairs and the flips; a row's depend on (seed, row) alone.

    Returns:
        `datasets.Dataset`: D in TRL's preference format, and `is_flipped`: `True` where `chosen` is the wrong output.

    Raises:
        ValueError: if an argument is out of range, or there is no pair.

    Reference:
        Dubois et al. 2023, https://arxiv.org/abs/2305.14387: 25 % of the simulated labels are flipped.
    """
    require_samples(samples, "samples")
    if len(answers) != len(samples):
        raise ValueError(f"`answers` has {len(answers)} entries for {len(samples)} samples. Pass one a row.")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"`label_noise` is a probability, got {label_noise}. AlpacaFarm takes 0.25.")
    if pairs_per_prompt < 1:
        raise ValueError(f"`pairs_per_prompt` must be at least 1, got {pairs_per_prompt}.")
    records = []
    for number, (row, accepted) in enumerate(zip(samples, answers, strict=True)):
        generator = np.random.default_rng([seed, number])
        outputs = [text for text, done in zip(row["completions"], row["finished"], strict=True) if done]
        right = [text for text in outputs if is_correct(text, accepted)]
        wrong = [text for text in outputs if not is_correct(text, accepted) and text.strip()]
        wrong = list({normalize_text(text): text for text in wrong}.values())
        if not right:
            continue
        for place in generator.permutation(len(wrong))[:pairs_per_prompt]:
            better, worse = right[generator.integers(len(right))], wrong[place]
            is_flipped = bool(generator.random() < label_noise)
            chosen, rejected = (worse, better) if is_flipped else (better, worse)
            records.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "is_flipped": is_flipped})
    if not records:
        raise ValueError("No prompt of `samples` has a right and a wrong output, so there is nothing to prefer.")
    return Dataset.from_list(records)


def without_noise(preferences: Dataset) -> Dataset:
    """
    Gives simulated preferences with their flipped labels put right.

    Args:
        preferences (`datasets.Dataset`):
            What [`simulate_preferences`] gave.

    Returns:
        `datasets.Dataset`: `prompt`, `chosen` (right), `rejected` (wrong).
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
