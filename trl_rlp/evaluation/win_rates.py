"""Win rate of a policy against a reference, and the difference between the win rates of two policies."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_rlp.evaluation.intervals import bootstrap_interval
from trl_rlp.evaluation.reward_metrics import standard_error


def win_rate(preferences: Sequence[float], *, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """
    Computes the share of prompts where the policy's completion is preferred. A draw counts one half.

    Args:
        preferences (`Sequence[float]`):
            One preference per prompt, in [0, 1]: 1 if the policy's completion wins against the reference's, 0 if it
            loses, and 0.5 for a draw. Probabilities of a judge are also accepted and are not rounded.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the interval, in (0, 1).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling for the interval.

    Returns:
        `dict`: `win_rate` in [0, 1], higher is better, 0.5 for equal policies. Its `standard_error` and its bootstrap
        `interval` over prompts are `None` for a single prompt. `wins`, `draws` and `losses` count the preferences
        above, at and below 0.5. `prompts` is the number of prompts.

    Raises:
        ValueError: If there is no preference, or one is NaN or outside [0, 1].

    Example:

    ```python
    >>> win_rate([1.0, 0.5, 0.0, 1.0])["win_rate"]
    0.625
    ```
    """
    values = _check_preferences(preferences, "preferences")
    return {
        "win_rate": float(values.mean()),
        "standard_error": standard_error(values),
        "interval": None if len(values) < 2 else bootstrap_interval(values, level=level, seed=seed),
        "wins": int((values > 0.5).sum()),
        "draws": int((values == 0.5).sum()),
        "losses": int((values < 0.5).sum()),
        "prompts": len(values),
    }


def compare_win_rates(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """
    Compares two policies by their preferences over one reference on the same prompts, prompt by prompt.

    Some prompts are easy for both policies. Pairing removes this effect, so it detects smaller differences than two
    separate intervals.

    Args:
        first (`Sequence[float]`):
            Preferences for the first policy, in [0, 1].
        second (`Sequence[float]`):
            Preferences for the second policy, on the same prompts in the same order.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the interval, in (0, 1).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling for the interval.

    Returns:
        `dict`: `difference` of the win rates, first minus second, in [-1, 1]. Its paired `standard_error` and its
        bootstrap `interval` over prompts are `None` for a single prompt. `prompts` is the number of prompts.

    Raises:
        ValueError: If the numbers of prompts differ, there is no prompt, or a preference is NaN or outside [0, 1].
    """
    if len(first) != len(second):
        raise ValueError(
            f"`first` has {len(first)} preferences and `second` {len(second)}. Pass both for the same prompts, in the "
            "same order."
        )
    differences = _check_preferences(first, "first") - _check_preferences(second, "second")  # (prompts,)
    return {
        "difference": float(differences.mean()),
        "standard_error": standard_error(differences),
        "interval": None if len(differences) < 2 else bootstrap_interval(differences, level=level, seed=seed),
        "prompts": len(differences),
    }


def _check_preferences(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError(f"`{name}` is empty. Pass one preference per prompt.")
    invalid = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(invalid):
        raise ValueError(
            f"`{name}` row {invalid[0]} is {values[invalid[0]]}, but a preference is in [0, 1]. Pass 1 for a win, 0 "
            "for a loss and 0.5 for a draw."
        )
    return values
