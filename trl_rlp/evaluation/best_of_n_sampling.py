"""Best-of-n: takes the completion with the highest reward among n samples or their majority. It trains nothing."""

import functools
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.groups.clustering import cluster, find_majority, has_groups, require_decided_groups
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.scoring import score
from trl_rlp.data.validation import require_samples
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
    _require_size(n, size)
    _require_rewards(rewards)
    rank_weights = np.array([math.comb(rank, n - 1) / math.comb(size, n) for rank in range(size)])  # (N,)
    distinct, index = np.unique(rewards, return_inverse=True)
    ends = np.cumsum(np.bincount(index))
    weights = [rank_weights[start:end].mean() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return np.array(weights)[index]  # (distinct,) to (N,)


def best_of_n(
    rewards: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    n: int,
    *,
    cluster_ids: Sequence[Sequence[int]] | None = None,
    threshold: float = 0.5,
    num_draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """
    Computes the expected value of the best of n samples without bias, from N >= n samples per prompt.

    It averages over all subsets of n samples, so its variance is lower than that of an estimate from the first n
    samples. At n = 1 it is the mean of all samples.

    With `cluster_ids`, the best sample of a subset is the best member of its clear majority: its largest group, if the
    group has at least two members and a share of at least `threshold`. In a subset without a clear majority, it is the
    best of all samples, as before. This is ours and not the paper's. The average is then over `num_draws` random
    subsets of each prompt, or over all subsets if there are no more than that.

    Args:
        rewards (`Sequence[Sequence[float]]`):
            Rewards of N samples per prompt. The sample with the highest reward is the best. If rewards are equal, the
            values of these samples are averaged.
        values (`Sequence[Sequence[float]]`):
            Value of each sample: for example a gold reward, a win (1, 0.5 or 0), or whether the answer is correct.
        n (`int`):
            Number of samples to choose from, from 1 to N.
        cluster_ids (`Sequence[Sequence[int]]`, *optional*):
            Group of each sample, from [`cluster`] with `complete_groups=True`. -1 means no group. If several groups of
            a subset are equally large, the one with the earliest sample counts.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest share of a clear majority among n samples, in [0, 1] (γ in the paper). Only with `cluster_ids`.
        num_draws (`int`, *optional*, defaults to `200`):
            Number of random subsets per prompt, at least 1. Only with `cluster_ids`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random subsets, at least 0. Only with `cluster_ids`.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the interval, in (0, 1).

    Returns:
        `dict`: `value`, in the unit of `values`, with its `standard_error` and its bootstrap `interval` over prompts.
        The last two are `None` for a single prompt. `kl` is the result of [`best_of_n_kl`], and `prompts` is the
        number of prompts. With `cluster_ids`, `majority_share` is the share of subsets with a clear majority, in
        [0, 1].

    Raises:
        ValueError: If there is no prompt, `rewards`, `values` and `cluster_ids` differ in shape, a value is NaN, an
            argument is out of range, or for the same reasons as [`best_of_n_weights`].

    Relations:
        If all samples of each prompt are in one group, or each is in its own, the expected value is that without
        `cluster_ids`.

    Example:

    ```python
    >>> rewards, is_right = [[0.1, 0.3, 0.2]], [[1, 0, 1]]
    >>> best_of_n(rewards, is_right, 3)["value"], best_of_n(rewards, is_right, 3, cluster_ids=[[0, 1, 0]])["value"]
    (0.0, 1.0)
    ```
    """
    _require_values(rewards, values)
    if cluster_ids is None:
        rows = zip(rewards, values, strict=True)
        expected = [float(best_of_n_weights(row, n) @ np.asarray(row_values, dtype=float)) for row, row_values in rows]
        return _summarize_best(expected, n, level)
    _require_groups(rewards, cluster_ids, threshold, num_draws, seed)
    pairs = [
        _average_majorities(*row, _draw_subsets(len(row[0]), n, num_draws, [seed, number]), threshold)
        for number, row in enumerate(zip(rewards, values, cluster_ids, strict=True))
    ]
    expected, shares = zip(*pairs, strict=True)
    return {**_summarize_best(expected, n, level), "majority_share": float(np.mean(shares))}


def _summarize_best(expected: Sequence[float], n: int, level: float) -> dict[str, Any]:
    return {
        "value": float(np.mean(expected)),
        "standard_error": standard_error(expected),
        "interval": None if len(expected) < 2 else bootstrap_interval(expected, level=level),
        "kl": best_of_n_kl(n),
        "prompts": len(expected),
    }


def _draw_subsets(size: int, n: int, num_draws: int, seed: list[int]) -> np.ndarray:
    """Draws subsets of n of the samples. If all subsets are no more than `num_draws`, it returns all of them."""
    _require_size(n, size)
    if math.comb(size, n) <= num_draws:
        return np.array(list(combinations(range(size), n)))  # (subsets, n)
    orders = np.tile(np.arange(size), (num_draws, 1))  # (draws, N)
    np.random.default_rng(seed).permuted(orders, axis=1, out=orders)
    return np.sort(orders[:, :n], axis=1)  # (draws, n)


def _average_majorities(
    rewards: Sequence[float],
    values: Sequence[float],
    cluster_ids: Sequence[int],
    subsets: np.ndarray,
    threshold: float,
) -> tuple[float, float]:
    """Returns the mean value of the best over the subsets, and the share of subsets with a clear majority."""
    rewards, values = np.asarray(rewards, dtype=float)[subsets], np.asarray(values, dtype=float)[subsets]  # (draws, n)
    groups = np.asarray(cluster_ids)[subsets]  # (draws, n)
    mates = (groups[:, :, None] == groups[:, None, :]) & (groups >= 0)[:, :, None]  # (draws, n, n)
    sizes = mates.sum(axis=2)  # (draws, n): the size of each sample's group
    # argmax returns the earliest sample of a largest group, and so the group that was opened first.
    leaders = sizes.argmax(axis=1)[:, None]  # (draws, 1)
    largest = np.take_along_axis(sizes, leaders, axis=1)  # (draws, 1)
    is_clear = (largest >= 2) & (largest / groups.shape[1] >= threshold)  # (draws, 1)
    members = np.take_along_axis(mates, leaders[:, :, None], axis=1)[:, 0]  # (draws, n)
    candidates = members | ~is_clear  # (draws, n)
    highest = np.where(candidates, rewards, -np.inf).max(axis=1, keepdims=True)  # (draws, 1)
    best = candidates & (rewards == highest)  # (draws, n)
    means = np.where(best, values, 0).sum(axis=1) / best.sum(axis=1)  # (draws,)
    return float(means.mean()), float(is_clear.mean())


def _require_values(rewards: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> None:
    if len(rewards) == 0 or [len(row) for row in rewards] != [len(row) for row in values]:
        raise ValueError(
            f"`rewards` ({len(rewards)} prompts) and `values` ({len(values)}) must have the same shape and at least "
            "one prompt. Pass one reward and one value per sample."
        )
    for row, row_values in enumerate(values):
        if np.isnan(np.asarray(row_values, dtype=float)).any():
            raise ValueError(f"`values` row {row} contains NaN. Pass a number for each sample.")


def _require_groups(
    rewards: Sequence[Sequence[float]],
    cluster_ids: Sequence[Sequence[int]],
    threshold: float,
    num_draws: int,
    seed: int,
) -> None:
    if [len(row) for row in rewards] != [len(row) for row in cluster_ids]:
        raise ValueError(
            f"`rewards` ({len(rewards)} prompts) and `cluster_ids` ({len(cluster_ids)}) must have the same shape. "
            "Pass one group per sample, -1 for none."
        )
    _require_share(threshold)
    for name, value, minimum in (("num_draws", num_draws, 1), ("seed", seed, 0)):
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
    for row in rewards:
        _require_rewards(row)


def _require_size(n: int, size: int) -> None:
    if not 1 <= n <= size:
        raise ValueError(f"`n` must be from 1 to the number of samples, {size}, got {n}. Sample more completions.")


def _require_rewards(rewards: Sequence[float]) -> None:
    is_nan = np.isnan(np.asarray(rewards, dtype=float))
    if is_nan.any():
        raise ValueError(f"`rewards` entry {int(is_nan.argmax())} is NaN, so no sample is the best.")


def _require_share(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a share of the completions and must be in [0, 1], got {threshold}. Try 0.5.")


def best_of_n_kl(n: int) -> float:
    r"""
    Computes the KL divergence of best-of-n from the policy that it samples from: $\log n - (n - 1) / n$.

    This is an upper bound. It is exact if all samples are distinct, as for a continuous distribution. It is too high
    if the same completion can be sampled twice. It is a bound for every way to select one of n samples, so also for
    the selection within the majority.

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
    within: str | None = None,
    equivalence: Equivalence | None = None,
    threshold: float = 0.5,
    max_length: int | None = None,
) -> Dataset:
    """
    Selects the completion with the highest reward for each prompt. This is what best-of-n returns to a user.

    With `within="majority"`, it selects within the clear majority of the prompt: the largest group of completions that
    mean the same, if it has at least two members and a share of at least `threshold`. These are the prompts that SPG
    accepts. For any other prompt, it selects among all completions, because a user needs an answer. An unfinished
    completion is selected only if no other one can be. This is ours and not the paper's.

    The processes of `accelerate launch` share the work, so each of them must call this function with the same samples.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions` (n of them), `finished`. If they have `cluster_ids` and
            `confidence` (from [`cluster`]), these groups are used, and `equivalence` is not.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model (r_φ in the paper).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `reward_model`.
        within (`str`, *optional*):
            `"majority"`, or `None` to select among all completions, whether they are finished or not.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same, as for [`cluster`]. Only with `within="majority"`, which needs it
            for samples without groups.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest share of a clear majority, in [0, 1] (γ in the paper). Only with `within="majority"`.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].

    Returns:
        `datasets.Dataset`: The columns `prompt`, `completion`, `finished` and `reward`. If rewards are equal, the
        first completion is selected. With `within="majority"`, there are two more columns.
            - `confidence` (`float`, in [0, 1]): The share of the largest group. Without a clear majority it may be a
              lower bound, see [`cluster`].
            - `has_majority` (`bool`): Whether the prompt has a clear majority, so that `completion` is one of it.

    Raises:
        ValueError: If the samples are not policy samples, `within` is unknown, `threshold` is out of range, samples
            without groups come without `equivalence`, their groups were made for another threshold, `equivalence` is
            passed without `within`, or for the same reasons as [`score`].

    Relations:
        With `within="majority"`, the finished completions with `has_majority` are what the generator `majority_best`
        of [`synthesize_preferences`] prefers.

    Example:

    ```python
    >>> best = best_outputs(samples, reward_model, tokenizer, within="majority", equivalence=ExactMatch())
    >>> picks = best.filter(lambda row: row["has_majority"] and row["finished"])
    ```
    """
    samples = require_samples(samples, "samples")
    _require_selection(samples, within, equivalence, threshold)
    if within == "majority" and not has_groups(samples.column_names):
        samples = cluster(samples, equivalence, threshold=threshold)
    majorities = {}
    groups = [[] for _ in range(len(samples))]
    if within == "majority":
        groups = [find_majority(row, threshold) for row in samples["cluster_ids"]]
        majorities = {"confidence": samples["confidence"][:], "has_majority": [bool(group) for group in groups]}
    finished = samples["finished"][:]
    candidates = [_find_candidates(*row, within=within) for row in zip(finished, groups, strict=True)]
    score_rows = functools.partial(score, reward_model, processing_class, max_length=max_length, share_batches=True)
    rewards = CompletionRewards(samples, score_rows)
    rewards.fetch([(row, i) for row, members in enumerate(candidates) for i in members])
    chosen = [_find_best(rewards, row, members) for row, members in enumerate(candidates)]
    best, best_rewards = zip(*chosen, strict=True)
    columns = {
        "completion": [row[i] for row, i in zip(samples["completions"], best, strict=True)],
        "finished": [row[i] for row, i in zip(finished, best, strict=True)],
        "reward": list(best_rewards),
        **majorities,
    }
    selected = samples.select_columns(["prompt"])
    for name, values in columns.items():
        selected = selected.add_column(name, values)
    return selected


def _require_selection(
    samples: Dataset, within: str | None, equivalence: Equivalence | None, threshold: float
) -> None:
    if within is None:
        if equivalence is not None:
            raise ValueError('`equivalence` is read only with `within="majority"`, got `within=None`. Pass both.')
        return
    if within != "majority":
        raise ValueError(f'`within` must be "majority" or None, got {within!r}.')
    _require_share(threshold)
    if has_groups(samples.column_names):
        require_decided_groups(samples, threshold)
    elif equivalence is None:
        raise ValueError(
            "`equivalence` is None, but `within`='majority' groups completions by meaning. Pass an equivalence from "
            "`trl_rlp.data.groups`, or samples that `cluster` has grouped."
        )


def _find_candidates(finished: list[bool], group: list[int], *, within: str | None) -> list[int]:
    """Returns the completions to select from: the group, or all without one. Within the majority, finished first."""
    candidates = group or list(range(len(finished)))
    if within is None:
        return candidates
    return [i for i in candidates if finished[i]] or candidates


def _find_best(rewards: CompletionRewards, row: int, candidates: list[int]) -> tuple[int, float]:
    """Returns the candidate with the highest reward, the first of equal ones, and its reward."""
    values = rewards.fetch([(row, i) for i in candidates])
    best = int(np.argmax(values))
    return candidates[best], values[best]
