"""Best-of-n for `evaluate`. README.md in the same folder describes it."""

from typing import Any

import datasets
import evaluate

from trl_rlp.evaluation.best_of_n_sampling import best_of_n


class BestOfN(evaluate.Metric):
    """Expected value of the sample with the highest reward among n."""

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Expected value of the sample with the highest reward among n, without bias, from N samples.",
            citation="Hilton and Gao 2022, https://openai.com/research/measuring-goodharts-law",
            inputs_description="predictions: rewards of N samples per prompt. references: value of each sample.",
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        n: int,
        cluster_ids: list[list[int]] | None = None,
        threshold: float = 0.5,
        num_draws: int = 200,
        seed: int = 0,
        level: float = 0.95,
    ) -> dict[str, Any]:
        groups = {"cluster_ids": cluster_ids, "threshold": threshold, "num_draws": num_draws, "seed": seed}
        return best_of_n(predictions, references, n, **groups, level=level)
