"""The critic's part of a checkpoint: the value model and its optimizer, whole, also where processes shard them."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)


VALUE_MODEL = "value_model"
VALUE_ADAPTER = "value_adapter.pt"
VALUE_OPTIMIZER = "value_optimizer.pt"


def save_critic(
    folder: Path, critic: nn.Module, optimizer: torch.optim.Optimizer | None, accelerator: Accelerator
) -> None:
    """
    Writes the value model, or its adapter alone, and the optimizer. Every process calls this, the main one writes.

    Args:
        folder (`Path`):
            A checkpoint of the trainer.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped.
        optimizer (`torch.optim.Optimizer`, *optional*):
            Its optimizer; `None` writes none.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
    """
    model = accelerator.unwrap_model(critic).model
    is_adapter = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
    weights = get_model_state_dict(critic, options=options)
    state = None if optimizer is None else _optimizer_state(critic, optimizer, accelerator)
    if not accelerator.is_main_process:
        return
    weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if is_adapter:
        # A folder with an adapter inside a checkpoint would be taken for one of the policy's.
        torch.save(weights, folder / VALUE_ADAPTER)
    else:
        model.save_pretrained(folder / VALUE_MODEL, state_dict=weights)
    if state is not None:
        torch.save(state, folder / VALUE_OPTIMIZER)


def load_critic(folder: Path, critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """
    Restores what [`save_critic`] wrote.

    Args:
        folder (`Path`):
            A checkpoint of the trainer.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped.
        optimizer (`torch.optim.Optimizer`):
            Its optimizer.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Raises:
        ValueError: if there is no optimizer in it.
    """
    path = folder / VALUE_OPTIMIZER
    if not path.is_file():
        raise ValueError(
            f"`resume_from_checkpoint`={str(folder)!r} holds no {VALUE_OPTIMIZER}: it was written with "
            "`save_only_model`, which no run can go on from."
        )
    model = accelerator.unwrap_model(critic).model
    is_adapter = isinstance(model, PeftModel)
    if is_adapter:
        weights = torch.load(folder / VALUE_ADAPTER, map_location="cpu", weights_only=True)
    else:
        weights = type(model).from_pretrained(folder / VALUE_MODEL, dtype="auto").state_dict()
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    set_model_state_dict(critic, weights, options=StateDictOptions(full_state_dict=True, strict=not is_adapter))
    state = torch.load(path, map_location="cpu", weights_only=True)
    if _is_sharded(accelerator):
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(critic, _plain(optimizer), state, options=options)
    else:
        optimizer.load_state_dict(state)


def _optimizer_state(critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> dict[str, Any]:
    """Where nothing is sharded the optimizer's own words, which any kind of optimizer has."""
    if not _is_sharded(accelerator):
        return optimizer.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(critic, _plain(optimizer), options=options)


def _is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def _plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """What accelerate wrapped."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
