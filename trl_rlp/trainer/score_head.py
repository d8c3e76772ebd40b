"""The score head of a sequence classifier in training: whether it is frozen, and its precision under adapters."""

import copy

import torch
from accelerate.logging import get_logger
from peft import PeftConfig, PeftModel, TaskType
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from trl_rlp.data.score_inputs import find_score_layers_if_any, get_linear_layer
from trl_rlp.storage.precision import SCORE_HEADS, compute_in_fp32, is_half


logger = get_logger(__name__)


def has_frozen_score_head(model: nn.Module) -> bool:
    """
    Checks whether the score head of a model is frozen. An adapter does not save a frozen head.

    Args:
        model (`nn.Module`):
            A sequence classifier with one label, plain or inside a PEFT model.

    Returns:
        `bool`: `False` if the head is trained or cannot be found.
    """
    layers = find_score_layers_if_any(model)
    return bool(layers) and not any(get_linear_layer(layer).weight.requires_grad for layer in layers)


def keep_trained_head_in_fp32(model: nn.Module) -> None:
    """
    Casts the trained score head of a PEFT model to fp32, in place, as PEFT casts the weights of adapters.

    PEFT leaves a trained copy of a layer in the dtype of the model. In bf16, an optimizer step that is smaller than
    about 1/512 of a weight would be lost.

    Args:
        model (`nn.Module`):
            A sequence classifier. Nothing changes if it has no adapters, or its head is frozen or in fp32.
    """
    for layer in find_score_layers_if_any(model) if isinstance(model, PeftModel) else []:
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad and is_half(layer.weight.dtype):
            compute_in_fp32(layer)


def score_in_fp32(layer: nn.Module, hidden: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """
    Computes the output of a score layer in fp32, also in mixed precision, where the layer itself computes in 16 bits.

    A score near 8 in bf16 is rounded to a multiple of 1/32 or 1/16, which differences of scores do not survive.

    Args:
        layer (`nn.Module`):
            Layer of [`find_score_layers`] that has run.
        hidden (`torch.Tensor` of shape `(..., width)`):
            Its input.
        output (`torch.Tensor` of shape `(..., 1)`):
            Its output.

    Returns:
        `torch.Tensor` of shape `(..., 1)`: The scores. They are `output` if it is in fp32, or the layer has an adapter
        or is sharded by itself.
    """
    if output.dtype == torch.float32 or not isinstance(layer, nn.Linear) or isinstance(layer.weight, DTensor):
        return output
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return linear(hidden.float(), layer.weight.float(), bias)


def add_score_head(peft_config: PeftConfig) -> PeftConfig:
    """
    Returns an adapter configuration that trains the score head and saves it with the adapter.

    A configuration for `SEQ_CLS` already does this. With any other configuration, the head stays frozen at its random
    initial weights and is not saved with the adapter.

    Args:
        peft_config ([`~peft.PeftConfig`]):
            Configuration of an adapter. It is not changed.

    Returns:
        `peft.PeftConfig`: The same object, or a copy with the head in `modules_to_save`.
    """
    if peft_config.task_type == TaskType.SEQ_CLS or not hasattr(peft_config, "modules_to_save"):
        return peft_config
    modules = list(peft_config.modules_to_save or [])
    if set(modules) & set(SCORE_HEADS):
        return peft_config
    logger.warning(
        "`peft_config` neither trains nor saves the score head, so the head is added to `modules_to_save`. Set "
        '`task_type="SEQ_CLS"` to avoid this warning.'
    )
    peft_config = copy.copy(peft_config)
    peft_config.modules_to_save = [*modules, "classifier", "score"]
    return peft_config
