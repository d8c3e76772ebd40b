"""Win rate for `evaluate`: see README.md beside this file."""

import math
from typing import Any

import datasets
import evaluate

from trl_rlp.evaluation.reward_metrics import correctness
from trl_rlp.evaluation.win_rate import win_rate


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
        self, predictions: list[float], references: list[float], level: float = 0.95, seed: int = 0
    ) -> dict[str, Any]:
        pairs = list(zip(predictions, references, strict=True))
        for row, pair in enumerate(pairs):
            if any(math.isnan(score) for score in pair):
                raise ValueError(f"The scores of prompt {row} are {pair}. Give a number for each output.")
        return win_rate(correctness([own - other for own, other in pairs]), level=level, seed=seed)
