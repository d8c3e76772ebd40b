"""Metrics of a reward model on labeled pairs: accuracy, calibration, margin, and a baseline that uses only length."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.columns import list_finished
from trl_rlp.data.scoring import score
from trl_rlp.data.template_options import list_template_options
from trl_rlp.data.turns import message_text
from trl_rlp.data.validation import require_preferences


NUM_CALIBRATION_BINS = 10


def correctness(margins: Sequence[float]) -> np.ndarray:
    """
    Computes for each pair whether the reward model is right.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one per pair.

    Returns:
        `numpy.ndarray` of shape `(pairs,)`: 1 for a margin above 0, 0.5 for a tie, and 0 otherwise.
    """
    margins = np.asarray(margins, dtype=float)
    return (margins > 0) + 0.5 * (margins == 0)


def preference_accuracy(margins: Sequence[float]) -> float:
    """
    Computes the share of pairs where the chosen side has the higher reward. A tie counts one half.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one per pair.

    Returns:
        `float`: Accuracy in [0, 1], higher is better.
    """
    return float(np.mean(correctness(margins)))


def expected_calibration_error(margins: Sequence[float], num_bins: int = NUM_CALIBRATION_BINS) -> float:
    r"""
    Computes the expected calibration error of the probability that a reward model assigns to its own choice.

    The model prefers one side with confidence c = max(σ(m), 1 − σ(m)) in [½, 1]. Pairs are sorted into `num_bins` bins
    of equal width over [½, 1]. Then ECE = Σ_b (n_b / n) |accuracy_b − mean confidence_b|.

    Args:
        margins (`Sequence[float]`):
            m = r(x, y_w) - r(x, y_l), one per pair.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.

    Returns:
        `float`: Error in [0, 1], lower is better.

    Reference:
        Eq. 3 of [Guo et al. 2017](https://arxiv.org/abs/1706.04599), applied to binary choices.
    """
    margins = np.asarray(margins, dtype=float)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))  # (pairs,)
    correct = correctness(margins)  # (pairs,)
    bins = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    gaps = [abs(np.sum(correct[bins == b] - confidence[bins == b])) for b in range(num_bins)]
    return float(np.sum(gaps) / len(margins))


def brier_score(margins: Sequence[float]) -> float:
    """
    Computes the mean squared error of the Bradley-Terry probability: E[(1 − σ(m))²].

    Args:
        margins (`Sequence[float]`):
            m = r(x, y_w) - r(x, y_l), one per pair.

    Returns:
        `float`: Error in [0, 1], lower is better. It is ¼ if all margins are 0.

    Reference:
        Brier 1950, "Verification of forecasts expressed in terms of probability". Brier's score sums over both
        classes, so it is twice this one.
    """
    errors = 1 / (1 + np.exp(np.clip(np.asarray(margins, dtype=float), -700, 700)))  # 1 - σ(m), of shape (pairs,)
    return float(np.mean(errors**2))


def standard_error(values: Sequence[float]) -> float | None:
    """
    Computes the standard error of a mean.

    Args:
        values (`Sequence[float]`):
            One value per pair, prompt or seed, independent of each other.

    Returns:
        `float` or `None`: s / √n with n - 1 degrees of freedom, in the unit of the values. `None` for fewer than two
        values.
    """
    return None if len(values) < 2 else float(np.std(values, ddof=1) / np.sqrt(len(values)))


def pair_metrics(margins: Sequence[float], length_differences: Sequence[float]) -> dict[str, float]:
    """
    Computes all metrics of the gate from the margins of labeled pairs.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one per pair, all finite.
        length_differences (`Sequence[float]`):
            Length of y_w minus length of y_l, in characters, one per pair.

    Returns:
        `dict[str, float]`: The metrics:
        - `pairs`: Number of pairs.
        - `accuracy`: Higher is better.
        - `calibration_error`: Lower is better.
        - `brier_score`: Lower is better, ¼ for random guesses.
        - `log_loss`: Nats, lower is better, ln 2 for random guesses.
        - `margin`: Mean margin, in units of reward.
        - `length_accuracy`: Accuracy of "the longer one is better". A reward model should beat it.

    Raises:
        ValueError: If there is no pair, the two sequences differ in length, or a value is NaN.
    """
    if len(margins) == 0 or len(margins) != len(length_differences):
        raise ValueError(
            f"`margins` and `length_differences` must have the same length, at least 1, got {len(margins)} and "
            f"{len(length_differences)}. Pass one of each per pair."
        )
    for name, values in (("margin", margins), ("difference in length", length_differences)):
        is_missing = np.isnan(np.asarray(values, dtype=float))
        if is_missing.any():
            raise ValueError(f"The {name} of pair {int(is_missing.argmax())} is NaN. Check its two sides.")
    return {
        "pairs": len(margins),
        "accuracy": preference_accuracy(margins),
        "calibration_error": expected_calibration_error(margins),
        "brier_score": brier_score(margins),
        "log_loss": float(np.mean(np.logaddexp(0, -np.asarray(margins, dtype=float)))),
        "margin": float(np.mean(margins)),
        "length_accuracy": preference_accuracy(length_differences),
    }


def _count_characters(completion: str | list[dict[str, str]]) -> int:
    return len(completion) if isinstance(completion, str) else sum(len(message_text(turn)) for turn in completion)


def score_pairs(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    max_length: int | None = None,
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """
    Scores both sides of every pair with [`score`].

    The processes of `accelerate launch` share the batches, so each of them must call this function with the same
    pairs.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, `num_labels=1`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        preferences ([`~datasets.Dataset`]):
            TRL's preference format, as text or messages, with an explicit or implicit prompt. The columns
            `chosen_finished` and `rejected_finished` are optional. Without them, or with `None`, completions count as
            finished. `tools` and `chat_template_kwargs` are optional arguments of the chat template, as in TRL.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].

    Returns:
        `tuple[dict, dict]`: Rewards and lengths in characters. Both have the keys `chosen` and `rejected`, with one
        value per pair.

    Raises:
        TypeError: If an entry is neither text nor messages.
        ValueError: If a column is missing, the dataset is empty, or for the same reasons as [`score`].
    """
    preferences = require_preferences(preferences)
    if "prompt" in preferences.column_names:
        prompts = list(preferences["prompt"])
    else:
        prompts = ["" if isinstance(chosen, str) else [] for chosen in preferences["chosen"]]
    rewards = {
        side: score(
            model,
            processing_class,
            prompts,
            list(preferences[side]),
            list_finished(preferences, side),
            max_length=max_length,
            template_options=list_template_options(preferences),
            share_batches=True,
        )
        for side in ("chosen", "rejected")
    }
    return rewards, {side: [_count_characters(text) for text in preferences[side]] for side in rewards}


def reward_margins(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    max_length: int | None = None,
) -> tuple[list[float], list[int]]:
    """
    Computes the differences between the chosen and the rejected side: chosen minus rejected.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, `num_labels=1`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        preferences ([`~datasets.Dataset`]):
            Labeled pairs, as in [`score_pairs`].
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].

    Returns:
        `tuple[list[float], list[int]]`: Margins in units of reward, and differences in length in characters. Both have
        one value per pair.

    Raises:
        TypeError, ValueError: For the same reasons as [`score_pairs`].
    """
    rewards, lengths = score_pairs(model, processing_class, preferences, max_length)
    margins, length_differences = (
        [chosen - rejected for chosen, rejected in zip(side["chosen"], side["rejected"], strict=True)]
        for side in (rewards, lengths)
    )
    return margins, length_differences


def evaluate_reward_model(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    max_length: int | None = None,
) -> dict[str, float]:
    """
    Computes the [`pair_metrics`] of a reward model on labeled pairs.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, `num_labels=1`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        preferences ([`~datasets.Dataset`]):
            Labeled pairs, as in [`score_pairs`].
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].

    Returns:
        `dict[str, float]`: The result of [`pair_metrics`].

    Raises:
        TypeError, ValueError: For the same reasons as [`score_pairs`].
    """
    return pair_metrics(*reward_margins(model, processing_class, preferences, max_length))
