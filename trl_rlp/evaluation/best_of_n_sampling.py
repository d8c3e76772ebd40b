"""Best-of-n: takes the completion with the highest reward among n samples. This baseline trains nothing."""

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
    Computes the probability that each of N samples is the best of n samples drawn without replacement.

    The sample of rank i (rank 1 has the lowest reward) is the best of $\binom{i - 1}{n - 1}$ of the $\binom{N}{n}$
    subsets. Samples with equal rewards share the weights of their ranks equally.

    Args:
        rewards (`Sequence[float]`):
            Rewards of N samples of one prompt.
        n (`int`):
            Number of samples to draw, from 1 to N.

    Returns:
        `numpy.ndarray` of shape `(N,)`: Probabilities that sum to 1.

    Raises:
        ValueError: If `n` is out of range, or a reward is NaN.

    Reference:
        Hilton, Gao 2022, https://openai.com/research/measuring-goodharts-law, "Best-of-n sampling".

    Example:

    ```python
    >>> best_of_n_weights([0.1, 0.3, 0.2], 2).tolist()  # of {1, 2}, {1, 3}, {2, 3} the middle sample wins two
    [0.0, 0.6666666666666666, 0.3333333333333333]
    ```
    """
    rewards = np.asarray(rewards, dtype=float)
    size = len(rewards)
    if not 1 <= n <= size:
        raise ValueError(f"`n` must be from 1 to the number of samples, {size}, got {n}. Sample more completions.")
    if np.isnan(rewards).any():
        raise ValueError(f"`rewards` entry {int(np.isnan(rewards).argmax())} is NaN, so no sample is the best.")
    rank_weights = np.array([math.comb(rank, n - 1) / math.comb(size, n) for rank in range(size)])  # (N,)
    distinct, index = np.unique(rewards, return_inverse=True)
    ends = np.cumsum(np.bincount(index))
    weights = [rank_weights[start:end].mean() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return np.array(weights)[index]  # (distinct,) to (N,)


def best_of_n(
    rewards: Sequence[Sequence[float]], values: Sequence[Sequence[float]], n: int, *, level: float = 0.95
) -> dict[str, Any]:
    """
    Computes the expected value of the best of n samples without bias, from N >= n samples per prompt.

    It averages over all subsets of n samples, so its variance is lower than that of an estimate from the first n
    samples. At n = 1 it is the mean of all samples.

    Args:
        rewards (`Sequence[Sequence[float]]`):
            Rewards of N samples per prompt. The sample with the highest reward is the best.
        values (`Sequence[Sequence[float]]`):
            Value of each sample: for example a gold reward, a win (1, 0.5 or 0), or whether the answer is correct.
        n (`int`):
            Number of samples to choose from, from 1 to N.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the interval, in (0, 1).

    Returns:
        `dict`: `value`, in the unit of `values`, with its `standard_error` and its bootstrap `interval` over prompts.
        The last two are `None` for a single prompt. `kl` is the result of [`best_of_n_kl`], and `prompts` is the
        number of prompts.

    Raises:
        ValueError: If there is no prompt, `rewards` and `values` differ in shape, a value is NaN, or for the same
            reasons as [`best_of_n_weights`].
    """
    if len(rewards) == 0 or [len(row) for row in rewards] != [len(row) for row in values]:
        raise ValueError(
            f"`rewards` ({len(rewards)} prompts) and `values` ({len(values)}) must have the same shape and at least "
            "one prompt. Pass one reward and one value per sample."
        )
    for row, row_values in enumerate(values):
        if np.isnan(np.asarray(row_values, dtype=float)).any():
            raise ValueError(f"`values` row {row} contains NaN. Pass a number for each sample.")
    expected = [
        float(best_of_n_weights(row, n) @ np.asarray(row_values, dtype=float))
        for row, row_values in zip(rewards, values, strict=True)
    ]
    return {
        "value": float(np.mean(expected)),
        "standard_error": standard_error(expected),
        "interval": None if len(expected) < 2 else bootstrap_interval(expected, level=level),
        "kl": best_of_n_kl(n),
        "prompts": len(expected),
    }


def best_of_n_kl(n: int) -> float:
    r"""
    Computes the KL divergence of best-of-n from the policy that it samples from: $\log n - (n - 1) / n$.

    This is an upper bound. It is exact if all samples are distinct, as for a continuous distribution. It is too high
    if the same completion can be sampled twice.

    Args:
        n (`int`):
            Number of samples to choose from, at least 1.

    Returns:
        `float`: KL divergence, in nats.

    Raises:
        ValueError: If `n` is below 1.

    Reference:
        "Best-of-n sampling" in [Hilton and Gao 2022](https://openai.com/research/measuring-goodharts-law).
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
    Selects the completion with the highest reward for each prompt. This is what best-of-n returns to a user.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions` (n of them), `finished`.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model (r_φ in the paper).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `reward_model`.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].

    Returns:
        `datasets.Dataset`: The columns `prompt`, `completion`, `finished` and `reward`. If rewards are equal, the
        first completion is selected.

    Raises:
        ValueError: If the samples are not policy samples, or for the same reasons as [`score`].
    """
    rewards = score_samples(reward_model, processing_class, samples, max_length=max_length)
    best = np.argmax(rewards, axis=1)  # (prompts,)
    columns = {
        "completion": [row[i] for row, i in zip(samples["completions"], best, strict=True)],
        "finished": [row[i] for row, i in zip(samples["finished"], best, strict=True)],
        "reward": [row[i] for row, i in zip(rewards, best, strict=True)],
    }
    selected = samples.select_columns(["prompt"])
    for name, values in columns.items():
        selected = selected.add_column(name, values)
    return selected
