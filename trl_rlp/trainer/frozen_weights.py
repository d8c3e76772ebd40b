"""Frozen weights: an error if a model has no others, and models that are frozen only while they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from trl_rlp.data.batching import eval_mode


def require_trainable(model: nn.Module | str | Path, name: str, peft_argument: str) -> None:
    """
    Checks that a model has weights to train. Training would otherwise change nothing.

    Args:
        model (`nn.Module` or `str` or `Path`):
            Model to train. A name is accepted, because loaded weights are not frozen.
        name (`str`):
            Name of the argument, for the error message.
        peft_argument (`str`):
            Name of the argument that adds an adapter to the model, for the error message.

    Raises:
        ValueError: If all weights are frozen.
    """
    if not isinstance(model, nn.Module) or any(parameter.requires_grad for parameter in model.parameters()):
        return
    raise ValueError(
        f"`{name}` has nothing to train, because all of its weights are frozen (`requires_grad` is False). Call "
        f"`{name}.requires_grad_(True)` or pass `{peft_argument}`. Load an adapter with "
        "`PeftModel.from_pretrained(..., is_trainable=True)`."
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """
    Puts a model into evaluation mode without gradients, and freezes its weights. Afterwards, the modes and
    `requires_grad` are as before.

    Under autocast, a weight that is not frozen takes more memory, because its copy in another precision is kept.

    Args:
        model (`nn.Module`):
            Any model.
    """
    with keep_requires_grad(model), eval_mode(model):
        model.requires_grad_(False)
        yield


@contextmanager
def keep_requires_grad(model: nn.Module) -> Iterator[None]:
    """
    Restores `requires_grad` of all weights at the end. PEFT changes it when adapters are disabled or replaced.

    Args:
        model (`nn.Module`):
            Any model.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
