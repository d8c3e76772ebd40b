"""Best-of-n: the output with the highest reward among n samples, the baseline that trains nothing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.scoring import score_samples
from trl_rlp.evaluation.intervals import bootstrap_interval
from trl_rlp.evaluation.reward_metrics import standard_error


def best_of_n_weights(rewards: Sequence[float], n: int) -> np.ndarray:
    r"""
    Gives the probability that each of N samples is the best of n that are drawn from them without replacement.

    The sample of rank i (1 is the lowest reward) is the best of $\binom{i - 1}{n - 1}$ of the $\binom{N}{n}$ subsets.
    Samples of equal reward share the weights of their ranks.

    Args:
        rewards (`Sequence[float]`):
            Rewards of N samples of one prompt.
        n (`int`):
            From 1 to N.

    Returns:
        `numpy.ndarray` of shape `(N,)`: probabilities that sum to 1.

    Raises:
        ValueError: if `n` is out of range, or a reward is NaN.

    Reference:
        Hilton, Gao 2022, https://openai.com/research/measuring-goodharts-law, "Best-of-n sampling".

    Example:

    ```python
    >>> best_of_n_weights([0.1, 0.3, 0.2], 2).tolist()  # of {1, 2}, {1, 3}, {2, 3} the middle one wins two
    [0.0, 0.6666666666666666, 0.3333333333333333]
    ```
    """
    rewards = np.asarray(rewards, dtype=float)
    size = len(rewards)
    if not 1 <= n <= size:
        raise ValueError(f"`n` must be from 1 to the number of samples, {size}, got {n}. Sample more outputs.")
    if np.isnan(rewards).any():
        raise ValueError(f"`rewards` entry {int(np.isnan(rewards).argmax())} is NaN, so no sample is the best.")
    by_rank = np.array([math.comb(rank, n - 1) / math.comb(size, n) for rank in range(size)])  # (N,)
    levels, level_of = np.unique(rewards, return_inverse=True)
    ends = np.cumsum(np.bincount(level_of))
    shares = [by_rank[start:end].mean() for start, end in zip([0, *ends[:-1]], ends, strict=True)]  # (levels,)
    return np.array(shares)[level_of]


def best_of_n(
    rewards: Sequence[Sequence[float]], values: Sequence[Sequence[float]], n: int, *, level: float = 0.95
) -> dict[str, Any]:
    """
    Gives the expected value of the best of n samples, without bias, from N >= n samples a prompt.

    All subsets of n samples count, so the estimate varies less than one that takes the first n. At n = 1 it is the
    mean of all samples.

    Args:
        rewards (`Sequence[Sequence[float]]`):
            What the best is picked by: the reward model's rewards of N samples a prompt.
        values (`Sequence[Sequence[float]]`):
            What the picked sample is worth, likewise: a gold reward, a win (1, one half or 0), a right answer.
        n (`int`):
            Samples to pick from, from 1 to N.
        level (`float`, *optional*, defaults to `0.95`):
            Of the interval, in (0, 1).

    Returns:
        `dict`: `value`, in the unit of `values`; its `standard_error` and bootstrap `interval` over prompts (`None`
        for a single prompt); `kl`, see [`best_of_n_kl`]; `prompts`.

    Raises:
        ValueError: if there is no prompt, the two differ in shape, or as [`best_of_n_weights`] raises.
    """
    if len(rewards) == 0 or [len(row) for row in rewards] != [len(row) for row in values]:
        raise ValueError(
            f"`rewards` ({len(rewards)} prompts) and `values` ({len(values)}) must hold the same samples of at least "
            "one prompt. Give one of each a sample."
        )
    for row, worth in enumerate(values):
        if np.isnan(np.asarray(worth, dtype=float)).any():
            raise ValueError(f"`values` row {row} holds NaN. Give each sample's worth as a number.")
    picked = [
        float(best_of_n_weights(row, n) @ np.asarray(worth, dtype=float))
        for row, worth in zip(rewards, values, strict=True)
    ]
    return {
        "value": float(np.mean(picked)),
        "standard_error": standard_error(picked),
        "interval": None if len(picked) < 2 else bootstrap_interval(picked, level=level),
        "kl": best_of_n_kl(n),
        "prompts": len(picked),
    }


def best_of_n_kl(n: int) -> float:
    r"""
    Gives the KL divergence of best-of-n from the policy that it samples from: $\log n - (n - 1) / n$.

    An upper bound: it is exact where outputs come from a continuum, and too high where an output may be drawn twice.

    Args:
        n (`int`):
            Samples to pick from, at least 1.

    Returns:
        `float`, in nats.

    Raises:
        ValueError: if `n` is below 1.

    Reference:
        Hilton, Gao 2022, https://openai.com/research/measuring-goodharts-law, "Best-of-n sampling".
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}.")
    return math.log(n) - (n - 1) / n


def best_outputs(
    samples: Dataset,
    reward_model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
) -> Dataset:
    """
    Picks the output with the highest reward for each prompt: what a user of best-of-n gets.

    Args:
        samples (`datasets.Dataset`):
            Policy samples: `prompt`, `completions` (n of them), `finished`.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            r_φ.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Its tokenizer.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        `datasets.Dataset`: `prompt`, `completion`, `finished`, `reward`; of equal rewards the first.

    Raises:
        ValueError: if the samples are not policy samples, or as [`score`] raises.
    """
    rewards = score_samples(reward_model, processing_class, samples, max_length=max_length)
    best = np.argmax(rewards, axis=1)  # (prompts,)
    columns = {
        "completion": [row[i] for row, i in zip(samples["completions"], best, strict=True)],
        "finished": [row[i] for row, i in zip(samples["finished"], best, strict=True)],
        "reward": [row[i] for row, i in zip(rewards, best, strict=True)],
    }
    picked = samples.select_columns(["prompt"])
    for name, values in columns.items():
        picked = picked.add_column(name, values)
    return picked
