"""How often a policy's output is preferred to a reference's, and whether one policy's is more often than another's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trl_rlp.evaluation.intervals import bootstrap_interval
from trl_rlp.evaluation.reward_metrics import standard_error


def win_rate(preferences: Sequence[float], *, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """
    Gives the share of prompts on which a policy's output is preferred; a draw counts one half.

    Args:
        preferences (`Sequence[float]`):
            One a prompt, in [0, 1]: how far the policy's output is preferred to the reference's. 1 is a win, 0 a
            loss, one half a draw; a judge's probability counts as it is.
        level (`float`, *optional*, defaults to `0.95`):
            Of the interval, in (0, 1).
        seed (`int`, *optional*, defaults to `0`):
            Decides the interval's draws.

    Returns:
        `dict`: `win_rate` in [0, 1], higher is better, one half for equal policies; its `standard_error` and bootstrap
        `interval` over prompts (`None` for a single prompt); `wins`, `draws`, `losses` (preferences above, at and
        below one half) and `prompts`.

    Raises:
        ValueError: if there is no preference, or one is outside [0, 1] or NaN.

    Example:

    ```python
    >>> win_rate([1.0, 0.5, 0.0, 1.0])["win_rate"]
    0.625
    ```
    """
    values = _preferences(preferences, "preferences")
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

    Pairing takes out what makes a prompt easy for both, so it tells smaller differences than two intervals side by
    side.

    Args:
        first (`Sequence[float]`):
            Preferences of one policy, in [0, 1].
        second (`Sequence[float]`):
            Of the other policy, on the same prompts in the same order.
        level (`float`, *optional*, defaults to `0.95`):
            Of the interval, in (0, 1).
        seed (`int`, *optional*, defaults to `0`):
            Decides the interval's draws.

    Returns:
        `dict`: `difference` of the win rates, first minus second, in [-1, 1]; its paired `standard_error` and
        bootstrap `interval` over prompts (`None` for a single prompt); `prompts`.

    Raises:
        ValueError: if the numbers of prompts differ, there is none, or a preference is outside [0, 1] or NaN.
    """
    if len(first) != len(second):
        raise ValueError(
            f"`first` has {len(first)} preferences and `second` {len(second)}. Give both on the same prompts, in one "
            "order."
        )
    differences = _preferences(first, "first") - _preferences(second, "second")  # (prompts,)
    return {
        "difference": float(differences.mean()),
        "standard_error": standard_error(differences),
        "interval": None if len(differences) < 2 else bootstrap_interval(differences, level=level, seed=seed),
        "prompts": len(differences),
    }


def _preferences(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError(f"`{name}` is empty. Give one preference a prompt.")
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        raise ValueError(
            f"`{name}` row {wrong[0]} is {values[wrong[0]]}, but a preference is in [0, 1]. Give 1 for a win, 0 for a "
            "loss and 0.5 for a draw."
        )
    return values
