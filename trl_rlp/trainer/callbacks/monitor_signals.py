"""The signals of the policy monitor: their limits, how they are computed, and when a limit counts as crossed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


PATIENCE = 2
"""Number of measurements in a row outside a limit that are an alert."""


@dataclass(frozen=True)
class Signal:
    """
    A number that is measured for each rollout.

    Args:
        limit (`float`, *optional*):
            Default limit. `None` means that there is none, because no default fits most tasks.
        advice (`str`):
            What to do if the limit is crossed.
        is_upper (`bool`, *optional*, defaults to `True`):
            Whether values above the limit are outside. If not, values below it are.
    """

    limit: float | None
    advice: str
    is_upper: bool = True


SIGNALS = {
    "kl": Signal(3.0, "Raise the weight of the KL divergence."),
    "length_ratio": Signal(1.5, "Read the longest completions, and check what the reward pays for length."),
    "finished": Signal(0.8, "Read unfinished completions. Raise the maximum length, or penalize missing EOS.", False),
    "malformed": Signal(0.2, "Read malformed completions. Raise the weight of the KL divergence."),
    "same_as_anchor": Signal(0.5, "Read completions that differ from their anchor.", False),
    "reward_length_correlation": Signal(0.4, "Refine the reward model on pairs in which the longer side is worse."),
    "disagreement": Signal(None, "Refine the reward model more often."),
    "outliers": Signal(0.05, "Read the outliers. Refine the reward model on recent completions."),
    "judge_win_rate": Signal(None, "Stop the run, and continue from an earlier checkpoint.", False),
}
"""
The signals by name:
- `kl`: KL divergence from the reference policy, in nats per completion. Higher means further away.
- `length_ratio`: Mean length in tokens, divided by that of the first measurement.
- `finished`: Share of completions that ended with EOS, in [0, 1].
- `malformed`: Share of malformed completions, in [0, 1].
- `same_as_anchor`: Share that means what the anchor means, of the completions with an anchor, in [0, 1].
- `reward_length_correlation`: Correlation of reward and length in characters, in [-1, 1].
- `disagreement`: Disagreement of the old and the refined reward model, as [`RewardRefinementCallback`] logs it.
- `outliers`: Share of completions that the reward model represents unlike the human data, in [0, 1].
- `judge_win_rate`: Win rate against reference completions by a judge, in [0, 1].
"""

_LOGGED = {"same_as_anchor": "semantic_anchor/same_share", "disagreement": "refinement/disagreement"}
"""Signals that another object of this package logs, and the name of the metric."""


def resolve_limits(limits: Mapping[str, float | None] | None) -> dict[str, float]:
    """
    Returns the limit of each signal that has one.

    Args:
        limits (`Mapping[str, float]`, *optional*):
            Limits that replace defaults. `None` removes a default.

    Returns:
        `dict[str, float]`: Limits by name of signal.

    Raises:
        ValueError: If a name is not a signal, or a limit is not a finite number.
    """
    chosen = {name: signal.limit for name, signal in SIGNALS.items()} | dict(limits or {})
    for name, limit in chosen.items():
        if name not in SIGNALS:
            raise ValueError(f"`limits` has the unknown signal {name!r}. The signals are {sorted(SIGNALS)}.")
        if limit is not None and not math.isfinite(limit):
            raise ValueError(f"`limits[{name!r}]` must be a finite number, got {limit}. Use None for no limit.")
    return {name: limit for name, limit in chosen.items() if limit is not None}


def read_log(logs: Mapping[str, float], length: float | None = None) -> dict[str, float]:
    """
    Reads signals from the log of a trainer: TRL's GRPO and RLOO, or PPO.

    GRPO and RLOO log the KL divergence per token. It is multiplied by the mean length.

    Args:
        logs (`Mapping[str, float]`):
            What the trainer logs. Metrics of an evaluation have other names and are ignored. `None` is read as NaN,
            because GRPO logs it for a metric that was NaN in every batch.
        length (`float`, *optional*):
            Mean length of completions, in tokens, for a log that has none.

    Returns:
        `dict[str, float]`: The signals that the log has, and `length`, the mean length in tokens.
    """
    values = {}
    logs = {name: math.nan if value is None else value for name, value in logs.items()}
    length = logs.get("completions/mean_length", length)
    if "completions/mean_length" in logs:
        values["length"] = logs["completions/mean_length"]
    if "completions/clipped_ratio" in logs:
        values["finished"] = 1 - logs["completions/clipped_ratio"]
    if "objective/kl" in logs:
        values["kl"] = logs["objective/kl"]
    elif "kl" in logs and length is not None:
        values["kl"] = logs["kl"] * length
    return values | {signal: logs[name] for signal, name in _LOGGED.items() if name in logs}


def correlate(rewards: Sequence[float], lengths: Sequence[float]) -> float | None:
    """
    Computes Pearson's correlation of rewards and lengths.

    Args:
        rewards (`Sequence[float]`):
            Rewards. Those that are not finite are left out.
        lengths (`Sequence[float]`):
            Length of each completion.

    Returns:
        `float`: Correlation in [-1, 1]. `None` if all rewards or all lengths are equal.
    """
    pairs = np.array([pair for pair in zip(rewards, lengths, strict=True) if math.isfinite(pair[0])], dtype=float)
    if len(pairs) < 2 or (pairs == pairs[0]).all(axis=0).any():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])


def spread_evenly(total: int, count: int) -> list[int]:
    """
    Selects rows that are spread evenly over all rows. No random number is drawn, so that the run does not change.

    Args:
        total (`int`):
            Number of rows.
        count (`int`):
            Maximum number of selected rows.

    Returns:
        `list[int]`: Numbers of the selected rows, in order.
    """
    count = min(total, count)
    return [row * total // count for row in range(count)]


class LimitWatch:
    """
    Counts how often in a row each signal is outside its limit.

    Args:
        limits (`Mapping[str, float]`):
            Limits by name of signal.

    Attributes:
        crossings (`dict[str, int]`):
            Number of measurements in a row outside the limit, for signals that are outside at present.
    """

    def __init__(self, limits: Mapping[str, float]):
        self.limits = dict(limits)
        self.crossings: dict[str, int] = {}

    def update(self, values: Mapping[str, float]) -> list[str]:
        """
        Adds a measurement of some signals. The others keep their count.

        Args:
            values (`Mapping[str, float]`):
                Values by name of signal. NaN is outside every limit.

        Returns:
            `list[str]`: Signals that are outside for the [`PATIENCE`]th time in a row. A signal is returned again only
            after it was inside.
        """
        for name, value in values.items():
            if name not in self.limits:
                continue
            limit = self.limits[name]
            if value <= limit if SIGNALS[name].is_upper else value >= limit:
                self.crossings.pop(name, None)
            else:
                self.crossings[name] = self.crossings.get(name, 0) + 1
        return [name for name in values if self.crossings.get(name) == PATIENCE]


def describe_alert(name: str, value: float, limit: float, step: int) -> str:
    """
    Describes an alert in one line.

    Args:
        name (`str`):
            Name of the signal.
        value (`float`):
            Its last value.
        limit (`float`):
            Its limit.
        step (`int`):
            Optimizer step.

    Returns:
        `str`: Signal, value, limit and what to do.
    """
    side = "above" if SIGNALS[name].is_upper else "below"
    return (
        f"The signal `{name}` is {value:.3g} at step {step}, {side} its limit of {limit:.3g} for {PATIENCE} "
        f"measurements in a row. {SIGNALS[name].advice}"
    )
