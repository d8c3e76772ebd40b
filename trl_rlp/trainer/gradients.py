"""Gradients of modules that no wrapper distributes."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """
    Averages gradients over processes, once a step; all processes must call it together.

    Unlike DDP it needs no backward pass on each process: one without gradients counts as zeros and holds nobody up.

    Args:
        parameters (`Iterable[nn.Parameter]`):
            The same on every process, in one order. Their gradients are replaced.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
    """
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)
