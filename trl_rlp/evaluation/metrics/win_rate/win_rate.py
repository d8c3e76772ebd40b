"""Win rate for `evaluate`. README.md in the same folder describes it."""

from typing import Any

import datasets
import evaluate
import numpy as np

from trl_rlp.evaluation.reward_metrics import correctness
from trl_rlp.evaluation.win_rates import compare_win_rates, win_rate


class WinRate(evaluate.Metric):
    """Share of prompts where a policy's completion has the higher score."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How often a policy's completion is preferred to a reference's. A draw counts one half.",
            citation="",
            inputs_description=(
                "predictions: score of the policy's completion, one per prompt. references: score of the reference's "
                "completion."
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
        wins = _count_wins(predictions, references)
        metrics = win_rate(wins, level=level, seed=seed)
        if others is not None:
            metrics["compared"] = compare_win_rates(wins, _count_wins(others, references), level=level, seed=seed)
        return metrics


def _count_wins(scores: list[float], references: list[float]) -> np.ndarray:
    """Returns 1 for a win, 0.5 for a draw and 0 for a loss, of shape `(prompts,)`."""
    if len(scores) != len(references):
        raise ValueError(f"There are {len(scores)} scores for {len(references)} `references`. Pass one per prompt.")
    for row, pair in enumerate(zip(scores, references, strict=True)):
        if not np.isfinite(pair).all():
            raise ValueError(f"The scores of prompt {row} are {pair}. Pass a finite number for each completion.")
    return correctness(np.subtract(scores, references))
