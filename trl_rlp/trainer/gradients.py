"""Averages the gradients of modules that no distributed wrapper handles."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """
    Averages gradients over processes.

    All processes must call it together, once per optimizer step. Unlike DDP, it does not need a backward pass on every
    process. A process without gradients counts as zeros and does not block the others.

    Args:
        parameters (`Iterable[nn.Parameter]`):
            The same parameters in the same order on every process. Their gradients are replaced.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
    """
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)  # `cat` may have promoted it
