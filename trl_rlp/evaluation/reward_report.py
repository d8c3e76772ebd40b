"""All metrics of a reward model on labeled pairs: those of the gate, the margins, and the effect of length."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.evaluation.intervals import bootstrap_interval
from trl_rlp.evaluation.reward_bench import section_scores, subset_accuracies
from trl_rlp.evaluation.reward_metrics import correctness, pair_metrics, score_pairs


MARGIN_BINS = 20


def margin_histogram(margins: Sequence[float], num_bins: int = MARGIN_BINS) -> dict[str, list]:
    """
    Counts pairs by their margin, in bins that are symmetric around 0.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one per pair. The model is wrong on pairs with a margin below 0.
        num_bins (`int`, *optional*, defaults to `20`):
            Number of bins of equal width. With an even number, 0 is an edge.

    Returns:
        `dict[str, list]`: `counts` per bin, and `edges` in units of reward, one more than bins.
    """
    largest = float(np.max(np.abs(margins))) or 1.0
    counts, edges = np.histogram(margins, bins=num_bins, range=(-largest, largest))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """
    Computes Spearman's rank correlation.

    Args:
        first (`Sequence[float]`):
            First variable.
        second (`Sequence[float]`):
            Second variable, of the same length.

    Returns:
        `float`: Correlation in [-1, 1], or `None` if one variable is constant.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(scipy.stats.spearmanr(first, second).statistic)


def describe_rewards(
    chosen: Sequence[float],
    rejected: Sequence[float],
    lengths: dict[str, Sequence[float]] | None = None,
    *,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """
    Computes all metrics of labeled pairs from their rewards.

    Args:
        chosen (`Sequence[float]`):
            Reward of the chosen side, one per pair.
        rejected (`Sequence[float]`):
            Reward of the rejected side, one per pair.
        lengths (`dict`, *optional*):
            Lengths in characters with the keys `chosen` and `rejected`, one per pair.
        groups (`Sequence[str]`, *optional*):
            Prompt of each pair, for the interval.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the interval, in (0, 1).

    Returns:
        `dict`: The result of [`pair_metrics`], where `length_accuracy` needs `lengths`, and:
        - `accuracy_interval`: Bootstrap interval over prompts, or over pairs without `groups`. `None` for only one.
        - `margin_histogram`: The result of [`margin_histogram`].
        - `length_correlation` (with `lengths`): Spearman's correlation between reward and length over all completions,
          in [-1, 1]. `None` if the rewards or the lengths are constant.
        - `margin_length_correlation` (with `lengths`): Spearman's correlation between margin and difference in length
          over all pairs. The prompt cannot explain it, because both sides of a pair have the same prompt.

    Raises:
        ValueError: If there is no pair, two sequences differ in length, `lengths` has other keys, or a reward is not
            finite.
    """
    _require_rewards(chosen, rejected, lengths, groups)
    margins = np.subtract(chosen, rejected)  # (pairs,)
    differences = np.subtract(lengths["chosen"], lengths["rejected"]) if lengths else np.zeros(len(margins))
    metrics: dict[str, Any] = pair_metrics(margins, differences)
    metrics["accuracy_interval"] = None
    if len(margins if groups is None else set(groups)) > 1:
        metrics["accuracy_interval"] = bootstrap_interval(correctness(margins), groups=groups, level=level)
    metrics["margin_histogram"] = margin_histogram(margins)
    if lengths is None:
        del metrics["length_accuracy"]
        return metrics
    all_rewards, all_lengths = [*chosen, *rejected], [*lengths["chosen"], *lengths["rejected"]]
    metrics["length_correlation"] = rank_correlation(all_rewards, all_lengths)
    metrics["margin_length_correlation"] = rank_correlation(margins, differences)
    return metrics


def _require_rewards(
    chosen: Sequence[float],
    rejected: Sequence[float],
    lengths: dict[str, Sequence[float]] | None,
    groups: Sequence[Any] | None,
) -> None:
    if lengths is not None and {*lengths} != {"chosen", "rejected"}:
        raise ValueError(f"`lengths` has the keys {list(lengths)}. Pass `chosen` and `rejected`.")
    sides = [chosen, rejected, *(lengths or {}).values(), *([] if groups is None else [groups])]
    sizes = {len(side) for side in sides}
    if len(sizes) > 1:
        raise ValueError(f"Rewards, lengths and groups have {sorted(sizes)} entries. Pass one of each per pair.")
    if not np.isfinite([*chosen, *rejected]).all():
        pair = int(np.argmin(np.isfinite(chosen) & np.isfinite(rejected)))
        raise ValueError(f"A reward of pair {pair} is not finite. Check its two sides.")


def describe_reward_model(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    *,
    max_length: int | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """
    Computes all metrics of a reward model on labeled pairs.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, `num_labels=1`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        preferences ([`~datasets.Dataset`]):
            Labeled pairs, as in [`score_pairs`].
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        level (`float`, *optional*, defaults to `0.95`):
            Level of the interval, in (0, 1).

    Returns:
        `dict`: The result of [`describe_rewards`] with lengths. If `preferences` has a column `subset`, also `subsets`
        and `sections`, which are RewardBench's scores. See [`section_scores`].

    Raises:
        ValueError: If a column is missing, the dataset is empty, or for the same reasons as [`score`].
    """
    rewards, lengths = score_pairs(model, processing_class, preferences, max_length)
    prompts = None
    if "prompt" in preferences.column_names:
        prompts = [json.dumps(prompt) for prompt in preferences["prompt"]]
    metrics = describe_rewards(rewards["chosen"], rewards["rejected"], lengths, groups=prompts, level=level)
    if "subset" in preferences.column_names:
        margins = np.subtract(rewards["chosen"], rewards["rejected"])  # (pairs,)
        metrics["subsets"] = subset_accuracies(margins, preferences["subset"][:])
        metrics["sections"] = section_scores(metrics["subsets"])
    return metrics
