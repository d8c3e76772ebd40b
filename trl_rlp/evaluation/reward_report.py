"""What a reward model is like on labeled pairs, beyond what the gate reads: its margins, and its taste for length."""

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
            r(x, y_w) - r(x, y_l), one a pair; those below 0 are wrong.
        num_bins (`int`, *optional*, defaults to `20`):
            Bins of equal width; an even number makes 0 an edge.

    Returns:
        `dict[str, list]`: `edges`, one more than bins, in units of reward, and `counts`.
    """
    reach = float(np.max(np.abs(margins))) or 1.0
    counts, edges = np.histogram(margins, bins=num_bins, range=(-reach, reach))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """
    Gives Spearman's rank correlation.

    Args:
        first (`Sequence[float]`):
            Numbers.
        second (`Sequence[float]`):
            As many others.

    Returns:
        `float` in [-1, 1], or `None` where one of them is constant.
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
    Gives all figures of labeled pairs whose rewards are known.

    Args:
        chosen (`Sequence[float]`):
            Reward of the chosen side, one a pair.
        rejected (`Sequence[float]`):
            Of the rejected side.
        lengths (`dict`, *optional*):
            Of `chosen` and `rejected`, in characters, one a pair.
        groups (`Sequence[str]`, *optional*):
            Prompt of each pair, for the interval.
        level (`float`, *optional*, defaults to `0.95`):
            Of the interval, in (0, 1).

    Returns:
        `dict`: [`pair_metrics`]; `accuracy_interval`, by the bootstrap over
        prompts, or over pairs without `groups` (`None` for a single one); `margin_histogram`; with `lengths` also
        `length_accuracy` and, Spearman's, in [-1, 1] and `None` where one side is constant, `length_correlation`
        between reward and length over all outputs, and `margin_length_correlation` between margin and difference in
        length over pairs, which the prompt cannot explain.

    Raises:
        ValueError: if there is no pair, two sequences differ in length, or a reward is not finite.
    """
    if lengths is not None and {*lengths} != {"chosen", "rejected"}:
        raise ValueError(f"`lengths` has {list(lengths)}. Give those of `chosen` and `rejected`.")
    sides = [chosen, rejected, *(lengths or {}).values(), *([] if groups is None else [groups])]
    sizes = {len(side) for side in sides}
    if len(sizes) > 1:
        raise ValueError(f"Rewards, lengths and groups have {sorted(sizes)} entries. Give one of each a pair.")
    if not np.isfinite([*chosen, *rejected]).all():
        pair = int(np.argmin(np.isfinite(chosen) & np.isfinite(rejected)))
        raise ValueError(f"A reward of pair {pair} is not finite. Check its two sides.")
    margins = np.subtract(chosen, rejected)  # (pairs,)
    differences = np.subtract(lengths["chosen"], lengths["rejected"]) if lengths else np.zeros(len(margins))
    figures: dict[str, Any] = pair_metrics(margins, differences)
    figures["accuracy_interval"] = None
    if len(margins if groups is None else set(groups)) > 1:
        figures["accuracy_interval"] = bootstrap_interval(correctness(margins), groups=groups, level=level)
    figures["margin_histogram"] = margin_histogram(margins)
    if lengths is None:
        del figures["length_accuracy"]
        return figures
    both = [*chosen, *rejected], [*lengths["chosen"], *lengths["rejected"]]
    figures["length_correlation"] = rank_correlation(*both)
    figures["margin_length_correlation"] = rank_correlation(margins, differences)
    return figures


def describe_reward_model(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    *,
    max_length: int | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """
    Gives all figures of a reward model on labeled pairs.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, `num_labels=1`.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Its tokenizer.
        preferences (`datasets.Dataset`):
            TRL preference format, text or messages, `prompt` explicit or implied; optional `chosen_finished` and
            `rejected_finished`, else all outputs count as finished.
        max_length (`int`, *optional*):
            As in [`score`].
        level (`float`, *optional*, defaults to `0.95`):
            Of the interval, in (0, 1).

    Returns:
        `dict`: [`describe_rewards`], with the lengths of the outputs. Where there is a column `subset`, also `subsets`
        and `sections`, the scores of [`reward_bench`].

    Raises:
        ValueError: if a column is missing, the data set is empty, or as [`score`] raises.
    """
    rewards, lengths = score_pairs(model, processing_class, preferences, max_length)
    prompts = None
    if "prompt" in preferences.column_names:
        prompts = [json.dumps(prompt) for prompt in preferences["prompt"]]
    figures = describe_rewards(rewards["chosen"], rewards["rejected"], lengths, groups=prompts, level=level)
    if "subset" in preferences.column_names:
        margins = np.subtract(rewards["chosen"], rewards["rejected"])  # (pairs,)
        figures["subsets"] = subset_accuracies(margins, preferences["subset"][:])
        figures["sections"] = section_scores(figures["subsets"])
    return figures
