"""Win rate for `evaluate`: see README.md beside this file."""

from typing import Any

import datasets
import evaluate
import numpy as np

from trl_rlp.evaluation.reward_metrics import correctness
from trl_rlp.evaluation.win_rate import compare_win_rates, win_rate


class WinRate(evaluate.Metric):
    """How often a policy's output has the higher score."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How often a policy's output is preferred to a reference's; a draw is one half.",
            citation="",
            inputs_description=(
                "predictions: score of the policy's output, one a prompt. references: score of the reference's output."
            ),
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[float],
        others: list[float] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> dict[str, Any]:
        wins = _wins(predictions, references)
        figures = win_rate(wins, level=level, seed=seed)
        if others is not None:
            figures["compared"] = compare_win_rates(wins, _wins(others, references), level=level, seed=seed)
        return figures


def _wins(scores: list[float], references: list[float]) -> np.ndarray:
    if len(scores) != len(references):
        raise ValueError(f"There are {len(scores)} scores for {len(references)} `references`. Give one a prompt.")
    for row, pair in enumerate(zip(scores, references, strict=True)):
        if not np.isfinite(pair).all():
            raise ValueError(f"The scores of prompt {row} are {pair}. Give a number for each output.")
    return correctness(np.subtract(scores, references))
