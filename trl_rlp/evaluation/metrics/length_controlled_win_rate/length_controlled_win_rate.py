"""Length-controlled win rate for `evaluate`. README.md in the same folder describes it."""

from typing import Any

import datasets
import evaluate

from trl_rlp.evaluation.length_control import length_controlled_win_rate, load_anchors


class LengthControlledWinRate(evaluate.Metric):
    """Win rate that a logistic model of the preferences predicts at equal length."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Win rate of a policy against a reference, if both wrote outputs of the same length.",
            citation="Dubois et al. 2024, Length-Controlled AlpacaEval, https://arxiv.org/abs/2404.04475",
            inputs_description=(
                "predictions: preference for the policy's output in [0, 1], one per prompt. prediction_lengths, "
                "reference_lengths: lengths of both outputs in characters."
            ),
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "prediction_lengths": datasets.Value("int64"),
                    "reference_lengths": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        prediction_lengths: list[int],
        reference_lengths: list[int],
        anchors: str | None = None,
        level: float = 0.95,
        resamples: int = 200,
        seed: int = 0,
    ) -> dict[str, Any]:
        return length_controlled_win_rate(
            predictions,
            prediction_lengths,
            reference_lengths,
            anchors=None if anchors is None else load_anchors(anchors),
            level=level,
            resamples=resamples,
            seed=seed,
        )
