"""The log of the multi-view loss, separate from the loss term because it needs no model."""

from collections import deque

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from trl_rlp.trainer.term_log import TermLog


logger = get_logger(__name__)

TERMS = (
    "preference_loss",
    "representation_loss",
    "mi",
    "mi_zero",
    "kl_12",
    "kl_21",
    "mean_spread",
    "deviation",
)
SKIPPED = "skipped_view_batches"
MI_TOLERANCE = 0.01
MI_PATIENCE = 5


class RepresentationLog:
    """
    Collects the terms of the loss between two logs and averages them over micro-batches and processes.

    It warns once if the estimate of the mutual information has not risen `MI_TOLERANCE` nats above its
    zero-information value in `MI_PATIENCE` logs, or in all logs of a shorter run.
    """

    def __init__(self):
        self._terms = TermLog((*TERMS, SKIPPED))
        self._is_mi_low: deque[bool] = deque(maxlen=MI_PATIENCE)
        self._has_warned = False

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """
        Adds the terms of one micro-batch.

        Args:
            terms (`dict[str, torch.Tensor]`):
                Scalars by name. The names are in `TERMS`. The scalars are detached from the graph.
        """
        self._terms.add(terms)

    def add_skipped(self) -> None:
        """Counts a micro-batch whose views come from fewer than two distinct prompts."""
        self._terms.add({SKIPPED: torch.tensor(1.0)})

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Returns the means since the last call. All processes must call it together.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's accelerator.

        Returns:
            `dict[str, float]`: The mean of each term that some process added, and the number of skipped micro-batches.
        """
        sums = self._terms.sums(accelerator)
        skipped, _ = sums.pop(SKIPPED)
        means = {name: total / count for name, (total, count) in sums.items() if count}
        if means or skipped:
            means[SKIPPED] = skipped
        self._check_mutual_information(means)
        return means

    def _check_mutual_information(self, means: dict[str, float]) -> None:
        if "mi" in means:
            # A lower bound can also fall below its zero-information value: a bad critic is worse than none.
            self._is_mi_low.append(means["mi"] - means["mi_zero"] <= MI_TOLERANCE)
        if len(self._is_mi_low) == MI_PATIENCE:
            self.warn_if_mi_stays_low()

    def warn_if_mi_stays_low(self) -> None:
        """Warns, once, if the estimate was at its zero-information value in all of the last logs."""
        if self._has_warned or not self._is_mi_low or not all(self._is_mi_low):
            return
        self._has_warned = True
        logger.warning(
            f"`mi` has not risen {MI_TOLERANCE} nats above its zero-information value in the last "
            f"{len(self._is_mi_low)} log(s). The loss has found no information that the views share. Train longer, or "
            'try `representation_recipe="cosine"` or a lower `kl_weight`.'
        )
