"""Means of terms between two logs, over micro-batches and processes."""

import torch
from accelerate import Accelerator


class TermLog:
    """
    Gathers scalars by name.

    Args:
        names (`tuple[str, ...]`):
            All names that may come, the same on every process.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self._values: dict[str, list[torch.Tensor]] = {}

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """
        Keeps the terms of one micro-batch.

        Args:
            terms (`dict[str, torch.Tensor]`):
                Scalars by their name; detached here.
        """
        for name, value in terms.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def sums(self, accelerator: Accelerator) -> dict[str, tuple[float, float]]:
        """
        Gives sum and count of each name since the last call, over all processes, which must call it together.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's.

        Returns:
            `dict[str, tuple[float, float]]`: by name; a count of 0 where no process had any.
        """
        rows = torch.zeros(len(self.names), 2, device=accelerator.device)  # (names, [sum, count])
        for row, name in enumerate(self.names):
            if name in self._values:
                rows[row, 0] = torch.stack(self._values[name]).sum()
                rows[row, 1] = len(self._values[name])
        self._values = {}
        pairs = accelerator.reduce(rows, reduction="sum").tolist()
        return {name: (total, count) for name, (total, count) in zip(self.names, pairs, strict=True)}

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Gives the means since the last call, over all processes, which must call it together.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's.

        Returns:
            `dict[str, float]`: a mean for each name that some process had.
        """
        return {name: total / count for name, (total, count) in self.sums(accelerator).items() if count}
