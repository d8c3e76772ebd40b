"""Collects scalars between two logs and sums them over micro-batches and processes."""

import torch
from accelerate import Accelerator


class TermLog:
    """
    Collects scalars by name.

    Args:
        names (`tuple[str, ...]`):
            All names that may be added. They must be the same on every process.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self._values: dict[str, list[torch.Tensor]] = {}

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """
        Adds the terms of one micro-batch.

        Args:
            terms (`dict[str, torch.Tensor]`):
                Scalars by name. They are detached from the graph.
        """
        for name, value in terms.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def sums(self, accelerator: Accelerator) -> dict[str, tuple[float, float]]:
        """
        Returns the sum and the count of each name since the last call, over all processes.

        All processes must call it together. One collective operation reduces all names.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's accelerator.

        Returns:
            `dict[str, tuple[float, float]]`: (sum, count) by name. The count is 0 if no process added a value.
        """
        rows = torch.zeros(len(self.names), 2, device=accelerator.device)  # (names, [sum, count])
        for row, name in enumerate(self.names):
            if name in self._values:
                rows[row, 0] = torch.stack(self._values[name]).sum()
                rows[row, 1] = len(self._values[name])
        self._values = {}
        pairs = accelerator.reduce(rows, reduction="sum").tolist()
        return {name: (total, count) for name, (total, count) in zip(self.names, pairs, strict=True)}
