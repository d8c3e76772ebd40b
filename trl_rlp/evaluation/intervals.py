"""Confidence intervals of a mean: over prompts with the bootstrap, over seeds with Student's t."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from trl_rlp.evaluation.reward_metrics import standard_error


_VALUES_PER_BATCH = 10_000_000
"""Maximum number of values drawn at the same time. It limits the memory for many prompts."""


def bootstrap_interval(
    values: Sequence[float],
    *,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Computes the percentile bootstrap interval of a mean over prompts.

    If all values are equal, the interval has zero width. Then the sample shows no spread, but the true spread may be
    larger than zero.

    Args:
        values (`Sequence[float]`):
            One value per prompt, independent of each other. For a paired comparison, pass the differences.
        groups (`Sequence`, *optional*):
            Prompt of each value, if a prompt has several values. Prompts are then resampled with all their values.
        level (`float`, *optional*, defaults to `0.95`):
            Share of the resampled means inside the interval, in (0, 1).
        resamples (`int`, *optional*, defaults to `10000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: If there are fewer than two values or prompts, a value is not finite, `groups` has another length
            than `values`, or `level` is out of range.

    Reference:
        Section 13.3 of Efron and Tibshirani 1993, "An Introduction to the Bootstrap".
    """
    _require_values(values, level, "prompts")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"`groups` has {len(groups)} entries for {len(values)} values. Pass one group per value.")
    prompt_index = np.arange(len(values)) if groups is None else _number_groups(groups)  # (values,)
    if prompt_index.max() == 0:
        raise ValueError("An interval needs at least two prompts, got 1. Evaluate more prompts.")
    sums, counts = np.bincount(prompt_index, weights=values), np.bincount(prompt_index)  # (prompts,)
    result = scipy.stats.bootstrap(
        (sums, counts),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        n_resamples=resamples,
        batch=max(1, _VALUES_PER_BATCH // len(sums)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _number_groups(groups: Sequence[Any]) -> np.ndarray:
    """Numbers groups. An array of prompts would take as much memory for each of them as for the longest."""
    numbers = {group: number for number, group in enumerate(sorted(set(groups), key=str))}
    return np.array([numbers[group] for group in groups])


def seed_interval(values: Sequence[float], *, level: float = 0.95) -> dict[str, float]:
    """
    Computes the mean over seeds and its interval: mean ± t s / √n with n - 1 degrees of freedom.

    Args:
        values (`Sequence[float]`):
            One value per seed. For a paired comparison, pass the difference of the two methods for each seed.
        level (`float`, *optional*, defaults to `0.95`):
            Probability that such an interval contains the true mean if the values are normally distributed, in (0, 1).

    Returns:
        `dict[str, float]`: `mean`, `standard_error`, `low` and `high` in the unit of the values, and the number of
        `seeds`.

    Raises:
        ValueError: If there are fewer than two seeds, a value is not finite, or `level` is out of range.
    """
    _require_values(values, level, "seeds")
    mean, error = float(np.mean(values)), float(standard_error(values))
    half_width = error * float(scipy.stats.t.ppf((1 + level) / 2, len(values) - 1))
    return {
        "mean": mean,
        "standard_error": error,
        "low": mean - half_width,
        "high": mean + half_width,
        "seeds": len(values),
    }


def _require_values(values: Sequence[float], level: float, unit: str) -> None:
    if len(values) < 2:
        raise ValueError(f"An interval needs at least two {unit}, got {len(values)}. Evaluate more {unit}.")
    is_missing = ~np.isfinite(np.asarray(values, dtype=float))
    if is_missing.any():
        row = int(is_missing.argmax())
        raise ValueError(f"Value {row} of the {unit} is {values[row]}, so there is no mean.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
