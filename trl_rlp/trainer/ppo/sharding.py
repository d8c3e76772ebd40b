"""The critic and the reference policy in distributed training: what accelerate does for one model, for these two."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils import broadcast, extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel


ACCELERATE_ATTRIBUTES = ("forward", "_original_forward", "_is_accelerate_prepared")
"""Attributes that accelerate sets on a model that it prepares."""


def prepare_critic(
    critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """
    Prepares the critic and its optimizer for distributed training. Under DeepSpeed they are not wrapped, because an
    engine holds one model, the policy. All processes then start with the trained weights of the main process, because
    each of them initializes a new adapter with its own random numbers.

    Args:
        critic (`nn.Module`):
            The critic. Its device may be another one.
        optimizer (`torch.optim.Optimizer`):
            Its optimizer.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Returns:
        `tuple[nn.Module, torch.optim.Optimizer]`: Both, wrapped by DDP or sharded by FSDP2.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        with own_layers(critic, accelerator.state.fsdp_plugin):  # moves one layer at a time to the device
            return accelerator.prepare(critic, optimizer)
    critic.to(accelerator.device)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        broadcast([parameter.data for parameter in critic.parameters() if parameter.requires_grad])
        return critic, optimizer
    return accelerator.prepare(critic, optimizer)


def critic_autocast(accelerator: Accelerator) -> AbstractContextManager:
    """
    Returns the mixed precision of the critic under DeepSpeed. accelerate leaves it to the engine, which does not hold
    the critic.

    Args:
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Returns:
        `AbstractContextManager`: It does nothing without DeepSpeed or without bf16.
    """
    is_needed = accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision == "bf16"
    return torch.autocast(accelerator.device.type, torch.bfloat16) if is_needed else nullcontext()


def prepare_reference(ref_model: PreTrainedModel, accelerator: Accelerator, is_own: bool) -> nn.Module:
    """
    Prepares the reference policy: it is sharded under FSDP2, in an engine of its own under DeepSpeed, and otherwise
    moved to its device. With `torch_compile` it is compiled, except under DeepSpeed.

    Args:
        ref_model ([`~transformers.PreTrainedModel`]):
            Copy of the initial policy, or the user's model. Only the device of the user's model changes. Under FSDP2
            and DeepSpeed, a copy of it is used.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
        is_own (`bool`):
            Whether the model is a copy that may be changed.

    Returns:
        `nn.Module`: The model as it is called.
    """
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return _move(ref_model, accelerator)
    ref_model = (ref_model if is_own else copy.deepcopy(ref_model)).requires_grad_(False).eval()
    if accelerator.distributed_type == DistributedType.FSDP:
        return _shard(ref_model, accelerator)
    from trl.models import prepare_deepspeed  # imports an optional dependency

    return prepare_deepspeed(ref_model, accelerator)


def _move(ref_model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """
    Moves and compiles the reference policy.

    accelerate marks a prepared model, and replaces its `forward` in mixed precision. Both are undone, because the
    user may train the model later. accelerate would not wrap a marked model for distributed training.
    """
    models = (ref_model, extract_model_from_parallel(ref_model, keep_torch_compile=False))
    attributes = [(model, name) for model in models for name in ACCELERATE_ATTRIBUTES]
    before = [(model, name, vars(model)[name]) for model, name in attributes if name in vars(model)]
    prepared = accelerator.prepare_model(ref_model, evaluation_mode=True)
    for model, name in attributes:
        vars(model).pop(name, None)
    for model, name, value in before:
        vars(model)[name] = value
    return prepared


def _shard(ref_model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """Shards each layer of the reference policy. TRL's `prepare_fsdp` shards the model as one unit."""
    from accelerate.utils import fsdp2_prepare_model  # needs torch's FSDP2

    with own_layers(ref_model, accelerator.state.fsdp_plugin):
        return fsdp2_prepare_model(accelerator, ref_model)


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """
    Moves a model to a device, and back afterwards. A model that is there is not moved.

    Args:
        model (`nn.Module`):
            A model that is not sharded.
        device (`torch.device`):
            The device.
    """
    before = next(model.parameters()).device
    if before == device:
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


@contextmanager
def own_layers(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> Iterator[None]:
    """
    Makes accelerate shard each layer of a model, whatever models it has prepared before or prepares later.

    accelerate keeps the names of the layers of the first model that it prepares, and looks for them in all others.

    Args:
        model (`nn.Module`):
            The model to prepare.
        plugin (`accelerate.FullyShardedDataParallelPlugin`):
            accelerate's settings. The names of layers that the user chose are used if the model has such layers.
    """
    before = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    present = {type(module).__name__ for module in model.modules()}
    names = [name for name in plugin.transformer_cls_names_to_wrap or () if name in present]
    names = names or [name for name in model._no_split_modules or () if name in present]
    plugin.transformer_cls_names_to_wrap = names
    try:
        yield
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = before
