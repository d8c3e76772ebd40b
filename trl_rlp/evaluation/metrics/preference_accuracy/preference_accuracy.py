"""A reward model's accuracy and calibration for `evaluate`: see README.md beside this file."""

import datasets
import evaluate

from trl_rlp.evaluation.reward_metrics import pair_metrics


class PreferenceAccuracy(evaluate.Metric):
    """How well rewards tell the preferred side of labelled pairs."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, calibration error, Brier score and log loss of a reward model on labelled pairs.",
            citation="",
            inputs_description="predictions: reward of the chosen side, one a pair. references: of the rejected side.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        margins = [chosen - rejected for chosen, rejected in zip(predictions, references, strict=True)]
        figures = pair_metrics(margins, [0] * len(margins))
        return {name: value for name, value in figures.items() if name != "length_accuracy"}
