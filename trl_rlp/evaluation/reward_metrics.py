"""How good a reward model is on labeled pairs: accuracy, calibration, margin, and the length-only baseline."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.scoring import score
from trl_rlp.data.validation import require_preferences


NUM_CALIBRATION_BINS = 10


def correctness(margins: Sequence[float]) -> np.ndarray:
    """
    Says of each pair whether it is right.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one a pair.

    Returns:
        `numpy.ndarray` of shape `(pairs,)`: 1 for a margin above 0, one half for a tie, else 0.
    """
    margins = np.asarray(margins, dtype=float)
    return (margins > 0) + 0.5 * (margins == 0)


def preference_accuracy(margins: Sequence[float]) -> float:
    """
    Gives the share of pairs whose chosen side has the higher reward; a tie counts one half.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one a pair.

    Returns:
        `float` in [0, 1], higher is better.
    """
    return float(np.mean(correctness(margins)))


def expected_calibration_error(margins: Sequence[float], num_bins: int = NUM_CALIBRATION_BINS) -> float:
    r"""
    Gives the expected calibration error of the probability that a reward model assigns to its own choice.

    The model prefers one side with confidence c = max(σ(m), 1 − σ(m)) in [½, 1]. Pairs fall into `num_bins` bins of
    equal width over [½, 1]; ECE = Σ_b (n_b / n) |accuracy_b − mean confidence_b|.

    Args:
        margins (`Sequence[float]`):
            m = r(x, y_w) - r(x, y_l), one a pair.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.

    Returns:
        `float` in [0, 1], lower is better.

    Reference:
        Guo et al. 2017, https://arxiv.org/abs/1706.04599, Eq. 3, on binary choices.
    """
    margins = np.asarray(margins, dtype=float)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    correct = correctness(margins)
    bins = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    gaps = [abs(np.sum(correct[bins == b] - confidence[bins == b])) for b in range(num_bins)]
    return float(np.sum(gaps) / len(margins))


def brier_score(margins: Sequence[float]) -> float:
    """
    Gives the mean squared error of the Bradley-Terry probability: E[(1 − σ(m))²].

    Args:
        margins (`Sequence[float]`):
            m = r(x, y_w) - r(x, y_l), one a pair.

    Returns:
        `float` in [0, 1], lower is better; ¼ where all margins are 0.

    Reference:
        Brier 1950, Verification of forecasts expressed in terms of probability. His score sums over both classes
        and so is twice this one.
    """
    wrong = 1 / (1 + np.exp(np.clip(np.asarray(margins, dtype=float), -700, 700)))  # 1 - σ(m)
    return float(np.mean(wrong**2))


def standard_error(values: Sequence[float]) -> float | None:
    """
    Gives the standard error of a mean.

    Args:
        values (`Sequence[float]`):
            One a pair, a prompt or a seed, independent of each other.

    Returns:
        `float` or `None`: s / √n with n - 1 degrees of freedom, in the values' unit; `None` for fewer than two.
    """
    return None if len(values) < 2 else float(np.std(values, ddof=1) / np.sqrt(len(values)))


def pair_metrics(margins: Sequence[float], length_differences: Sequence[float]) -> dict[str, float]:
    """
    Gives every figure the gate looks at or prints, from the margins of labeled pairs.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one a pair, all finite.
        length_differences (`Sequence[float]`):
            Length of y_w minus length of y_l, in characters, one a pair.

    Returns:
        `dict[str, float]`: `pairs` (count), `accuracy` (higher is better), `calibration_error` (lower is better),
        `brier_score` (lower is better, ¼ for a coin), `log_loss` in nats (lower is better, ln 2 for a coin), `margin`
        (mean, in units of reward), `length_accuracy` (accuracy of "the longer one is better": what a reward model must
        beat).

    Raises:
        ValueError: if there is no pair, the two sequences differ in length, or a margin is NaN.
    """
    if len(margins) == 0 or len(margins) != len(length_differences):
        raise ValueError(
            f"`margins` and `length_differences` must be of one positive length, got {len(margins)} and "
            f"{len(length_differences)}. Pass one of each a pair."
        )
    for what, values in (("margin", margins), ("difference in length", length_differences)):
        missing = np.isnan(np.asarray(values, dtype=float))
        if missing.any():
            raise ValueError(f"The {what} of pair {int(missing.argmax())} is NaN. Check its two sides.")
    return {
        "pairs": len(margins),
        "accuracy": preference_accuracy(margins),
        "calibration_error": expected_calibration_error(margins),
        "brier_score": brier_score(margins),
        "log_loss": float(np.mean(np.logaddexp(0, -np.asarray(margins, dtype=float)))),
        "margin": float(np.mean(margins)),
        "length_accuracy": preference_accuracy(length_differences),
    }


def _characters(completion: str | list[dict[str, str]]) -> int:
    return len(completion) if isinstance(completion, str) else sum(len(turn["content"]) for turn in completion)


def score_pairs(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    max_length: int | None = None,
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """
    Scores both sides of every pair through the one scoring function.

    Args:
        model (`PreTrainedModel`):
            Reward model, `num_labels=1`.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        preferences (`datasets.Dataset`):
            TRL preference format, text or messages, `prompt` explicit or implied; optional `chosen_finished` and
            `rejected_finished`, else all outputs count as finished.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        `tuple[dict, dict]`: of `chosen` and `rejected` the rewards, and the lengths in characters; one a pair.

    Raises:
        TypeError: if an entry is neither text nor messages.
        ValueError: if a column is missing, the data set is empty, or as [`score`] raises.
    """
    require_preferences(preferences)
    columns = preferences.column_names
    if "prompt" in columns:
        prompts = list(preferences["prompt"])
    else:
        prompts = ["" if isinstance(chosen, str) else [] for chosen in preferences["chosen"]]
    rewards = {
        side: score(
            model,
            processing_class,
            prompts,
            list(preferences[side]),
            list(preferences[f"{side}_finished"]) if f"{side}_finished" in columns else None,
            max_length=max_length,
        )
        for side in ("chosen", "rejected")
    }
    return rewards, {side: [_characters(text) for text in preferences[side]] for side in rewards}


def reward_margins(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    max_length: int | None = None,
) -> tuple[list[float], list[int]]:
    """
    Gives the differences of [`score_pairs`], chosen minus rejected.

    Args:
        model (`PreTrainedModel`):
            Reward model, `num_labels=1`.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        preferences (`datasets.Dataset`):
            As [`score_pairs`] takes them.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        `tuple[list[float], list[int]]`: margins in units of reward, length differences in characters; one a pair.

    Raises:
        ValueError: as [`score_pairs`] raises.
    """
    rewards, lengths = score_pairs(model, processing_class, preferences, max_length)
    margins, differences = (
        [chosen - rejected for chosen, rejected in zip(side["chosen"], side["rejected"], strict=True)]
        for side in (rewards, lengths)
    )
    return margins, differences


def evaluate_reward_model(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    max_length: int | None = None,
) -> dict[str, float]:
    """
    Gives [`pair_metrics`] of a reward model on labeled pairs.

    Args:
        model (`PreTrainedModel`):
            Reward model, `num_labels=1`.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        preferences (`datasets.Dataset`):
            TRL preference format, text or messages, `prompt` explicit or implied; optional `chosen_finished` and
            `rejected_finished`, else all outputs count as finished.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        `dict[str, float]`.

    Raises:
        ValueError: as [`reward_margins`] raises.
    """
    return pair_metrics(*reward_margins(model, processing_class, preferences, max_length))
