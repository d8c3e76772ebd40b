"""How far a mean may be from the truth: over prompts by the bootstrap, over seeds by Student's t."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from trl_rlp.evaluation.reward_metrics import standard_error


# Numbers drawn at once, so that many prompts do not fill the memory.
_DRAWS = 10_000_000


def bootstrap_interval(
    values: Sequence[float],
    *,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Gives the percentile bootstrap interval of a mean over prompts.

    Values that are all equal give an interval of no width, which says that the sample shows no spread and not that
    there is none.

    Args:
        values (`Sequence[float]`):
            One a prompt, independent of each other; for a paired comparison the differences.
        groups (`Sequence`, *optional*):
            What each value is of, where several are of one prompt: prompts are then resampled with all their values.
        level (`float`, *optional*, defaults to `0.95`):
            Share of the resampled means that the interval holds, in (0, 1).
        resamples (`int`, *optional*, defaults to `10000`):
            Resamples drawn.
        seed (`int`, *optional*, defaults to `0`):
            Decides the draws.

    Returns:
        `tuple[float, float]`: lower and upper end.

    Raises:
        ValueError: if there are fewer than two values or prompts, one is not finite, `groups` has another length, or
            `level` is out of range.

    Reference:
        Efron, Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    _require(values, level, "prompts")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"`groups` has {len(groups)} entries for {len(values)} values. Give one of each.")
    place = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if place.max() == 0:
        raise ValueError("An interval needs at least two prompts, got 1. Measure more of them.")
    sums, counts = np.bincount(place, weights=values), np.bincount(place)  # (prompts,)
    found = scipy.stats.bootstrap(
        (sums, counts),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        n_resamples=resamples,
        batch=max(1, _DRAWS // len(sums)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def seed_interval(values: Sequence[float], *, level: float = 0.95) -> dict[str, float]:
    """
    Gives mean and interval over seeds: mean ± t s / √n with n - 1 degrees of freedom.

    Args:
        values (`Sequence[float]`):
            One a seed; for a paired comparison the differences of two methods on each seed.
        level (`float`, *optional*, defaults to `0.95`):
            How often such an interval holds the true mean where seeds vary normally, in (0, 1).

    Returns:
        `dict[str, float]`: `mean`, `standard_error`, `low`, `high` in the values' unit, and the number of `seeds`.

    Raises:
        ValueError: if there are fewer than two seeds, a value is not finite, or `level` is out of range.
    """
    _require(values, level, "seeds")
    mean, error = float(np.mean(values)), float(standard_error(values))
    reach = error * float(scipy.stats.t.ppf((1 + level) / 2, len(values) - 1))
    return {
        "mean": mean,
        "standard_error": error,
        "low": mean - reach,
        "high": mean + reach,
        "seeds": len(values),
    }


def _require(values: Sequence[float], level: float, what: str) -> None:
    if len(values) < 2:
        raise ValueError(f"An interval needs at least two {what}, got {len(values)}. Measure more of them.")
    missing = ~np.isfinite(np.asarray(values, dtype=float))
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(f"Value {row} of the {what} is {values[row]}, so that there is no mean.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
