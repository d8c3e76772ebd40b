"""What the multi-view loss writes to the log, over all processes, and the warning when it learns nothing."""

from collections import deque

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger


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
    Gathers the terms of the loss between two logs and gives their means over micro-batches and processes.

    It warns once when the estimate of mutual information has not risen `MI_TOLERANCE` nats above its zero-information
    value in `MI_PATIENCE` logs, or in all logs of a shorter run.
    """

    def __init__(self):
        self._values: dict[str, list[torch.Tensor]] = {}
        self._skipped = 0
        self._at_zero: deque[bool] = deque(maxlen=MI_PATIENCE)
        self._has_warned = False

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """
        Keeps the terms of one micro-batch.

        Args:
            terms (`dict[str, torch.Tensor]`):
                Scalars by their name, each one of `TERMS`; detached here.
        """
        for name, value in terms.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def skip(self) -> None:
        """Counts a micro-batch whose views lacked two distinct instructions."""
        self._skipped += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Gives the means since the last call and starts anew. All processes must call it together.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's.

        Returns:
            `dict[str, float]`: a mean for each term that some process had, and the number of skipped micro-batches.
        """
        sums = torch.zeros(len(TERMS) + 1, 2, device=accelerator.device)  # (terms, [sum, count])
        for row, name in enumerate(TERMS):
            if name in self._values:
                sums[row, 0] = torch.stack(self._values[name]).sum()
                sums[row, 1] = len(self._values[name])
        sums[-1, 0] = self._skipped
        self._values, self._skipped = {}, 0
        *rows, (skipped, _) = accelerator.reduce(sums, reduction="sum").tolist()
        means = {name: total / count for name, (total, count) in zip(TERMS, rows, strict=True) if count}
        if means or skipped:
            means[SKIPPED] = skipped
        self._watch(means)
        return means

    def _watch(self, means: dict[str, float]) -> None:
        if "mi" in means:
            # A lower bound may also fall below: a bad critic knows less than nothing.
            self._at_zero.append(means["mi"] - means["mi_zero"] <= MI_TOLERANCE)
        if len(self._at_zero) == MI_PATIENCE:
            self.warn_if_empty()

    def warn_if_empty(self) -> None:
        """Warns, once, if all of the last logs had the estimate at its zero-information value."""
        if self._has_warned or not self._at_zero or not all(self._at_zero):
            return
        self._has_warned = True
        logger.warning(
            f"`mi` has not risen {MI_TOLERANCE} nats above its zero-information value in the last logs "
            f"({len(self._at_zero)}): the loss has found nothing that the views share. Train longer, or try "
            '`representation_recipe="cosine"` or a lower `kl_weight`.'
        )
