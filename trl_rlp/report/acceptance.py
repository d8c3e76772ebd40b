"""Acceptance and label accuracy as functions of the threshold γ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_rlp.data.turns import final_text
from trl_rlp.evaluation.policy_pairs import is_correct


THRESHOLDS = tuple(step / 20 for step in range(21))
"""The thresholds of the curves, from 0 to 1."""


@dataclass(frozen=True)
class Acceptance:
    """
    What each threshold accepts.

    Args:
        thresholds (`tuple[float, ...]`):
            Thresholds γ in [0, 1].
        lowest (`tuple[float, ...]`), highest (`tuple[float, ...]`):
            Bounds on the share of prompts whose confidence is at least γ. They are equal where all confidences are
            known exactly.
        pairs (`tuple[int, ...]`):
            Number of pairs with a confidence of at least γ.
        decided (`tuple[int, ...]`):
            Number of these pairs with exactly one right side.
        accuracy (`tuple[float or None, ...]`):
            Share of the decided pairs that prefer the right side. `None` if there is no such pair.
    """

    thresholds: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    pairs: tuple[int, ...]
    decided: tuple[int, ...]
    accuracy: tuple[float | None, ...]


def find_right_sides(
    pairs: Sequence[dict[str, Any]], answers: Sequence[str | Sequence[str]]
) -> list[tuple[bool, bool]]:
    """
    Compares both sides of preferences with the known answers.

    Args:
        pairs (`Sequence[dict]`):
            Rows with `chosen` and `rejected`, as text or messages.
        answers (`Sequence`):
            Accepted answer or answers, one entry for each pair.

    Returns:
        `list[tuple[bool, bool]]`: Whether the chosen and the rejected side are right.
    """
    return [
        (is_correct(final_text(pair["chosen"]), accepted), is_correct(final_text(pair["rejected"]), accepted))
        for pair, accepted in zip(pairs, answers, strict=True)
    ]


def sweep_thresholds(
    lower: Sequence[float],
    upper: Sequence[float],
    pair_confidences: Sequence[float],
    right_sides: Sequence[tuple[bool, bool]] | None = None,
) -> Acceptance:
    """
    Computes what each threshold accepts.

    Args:
        lower (`Sequence[float]`), upper (`Sequence[float]`):
            Bounds on the confidence of each prompt. The grouping stops when a prompt is certain to be rejected.
        pair_confidences (`Sequence[float]`):
            Confidence of each pair.
        right_sides (`Sequence[tuple[bool, bool]]`, *optional*):
            Result of [`find_right_sides`]. `None` without known answers.

    Returns:
        [`Acceptance`]: The curves.
    """
    lows, highs, confidences = (np.asarray(values, dtype=float) for values in (lower, upper, pair_confidences))
    sides = np.asarray(right_sides if right_sides else np.zeros((len(confidences), 2)), dtype=bool)  # (pairs, 2)
    is_decided = sides[:, 0] != sides[:, 1] if len(sides) else np.zeros(0, dtype=bool)  # (pairs,)
    curves = []
    for threshold in THRESHOLDS:
        accepted = confidences >= threshold  # (pairs,)
        decided = accepted & is_decided  # (pairs,)
        accuracy = float(sides[decided, 0].mean()) if decided.any() else None
        curves.append(
            (
                float(np.mean(lows >= threshold)) if len(lows) else 0.0,
                float(np.mean(highs >= threshold)) if len(highs) else 0.0,
                int(accepted.sum()),
                int(decided.sum()),
                accuracy,
            )
        )
    return Acceptance(THRESHOLDS, *zip(*curves, strict=True))
