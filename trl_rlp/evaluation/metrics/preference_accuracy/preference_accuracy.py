"""Accuracy and calibration of a reward model for `evaluate`. README.md in the same folder describes it."""

from typing import Any

import datasets
import evaluate

from trl_rlp.evaluation.reward_report import describe_rewards


class PreferenceAccuracy(evaluate.Metric):
    """Accuracy and calibration of rewards on labeled pairs."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, calibration error, Brier score and log loss of a reward model on labeled pairs.",
            citation="",
            inputs_description=(
                "predictions: reward of the chosen side, one per pair. references: reward of the rejected side."
            ),
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[float],
        lengths: dict[str, list[int]] | None = None,
        level: float = 0.95,
    ) -> dict[str, Any]:
        return describe_rewards(predictions, references, lengths, level=level)
