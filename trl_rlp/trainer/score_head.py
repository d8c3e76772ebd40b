"""Where a sequence classifier reads its score: the layer that makes it, and the hidden state that goes in."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from peft import PeftConfig, TaskType
from torch import nn


logger = get_logger(__name__)

SCORE_HEADS = ("score", "classifier", "classification_head")
"""Names under which sequence classifiers of transformers keep the head that makes the score."""


def score_layers(model: nn.Module) -> list[nn.Linear]:
    """
    Finds the linear layer whose output is the score; under PEFT there may be the frozen one and its trained copy.

    Args:
        model (`nn.Module`):
            A sequence classifier with one label, bare or inside a PEFT model.

    Returns:
        `list[nn.Linear]`: layers of equal input size. A forward pass runs one of them.

    Raises:
        ValueError: if the model has no head of a known name that ends in one number.
    """
    layers = _find_score_layers(model)
    if layers:
        return layers
    base = model.get_base_model() if is_peft_model(model) else model
    raise ValueError(
        f"`model` is a `{type(base).__name__}`, which has no linear score layer under one of the names {SCORE_HEADS}, "
        'so there is no hidden state to learn on. Use a sequence classifier of transformers, or `method="spg"`.'
    )


def has_frozen_score_head(model: nn.Module) -> bool:
    """
    Says whether a model has a score head that is neither trained nor, in an adapter, saved.

    Args:
        model (`nn.Module`):
            A sequence classifier with one label, bare or inside a PEFT model.

    Returns:
        `bool`: `False` if the head is trained or not found.
    """
    layers = _find_score_layers(model)
    return bool(layers) and not any(layer.weight.requires_grad for layer in layers)


def _find_score_layers(model: nn.Module) -> list[nn.Linear]:
    base = model.get_base_model() if is_peft_model(model) else model
    for name, head in base.named_children():
        if name not in SCORE_HEADS:
            continue
        layers = [module for module in head.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
        # A LoRA layer holds the layer that it adapts first, then a narrow one that also ends in one number.
        if layers:
            return [layer for layer in layers if layer.in_features == layers[0].in_features]
    return []


@contextmanager
def capture_score_inputs(layers: list[nn.Linear]) -> Iterator[list[torch.Tensor]]:
    """
    Records what enters the score layer, without keeping the hidden states of other layers.

    Args:
        layers (`list[nn.Linear]`):
            What [`score_layers`] gave.

    Yields:
        `list[torch.Tensor]`: filled by a forward pass with one tensor, of shape `(batch, length, hidden)` or, where
        the model pools before it scores, `(batch, hidden)`.
    """
    captured = []
    handles = [layer.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0])) for layer in layers]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def select_scored_states(hidden: torch.Tensor, input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """
    Picks the hidden state that each row's score is read from: that of its last token that is not padding.

    Args:
        hidden (`torch.Tensor` of shape `(batch, length, hidden)` or `(batch, hidden)`):
            What entered the score layer. Without a length the model has pooled already, and nothing is picked.
        input_ids (`torch.Tensor` of shape `(batch, length)`):
            Token ids of the same rows.
        pad_token_id (`int`):
            The pad token; where it equals EOS, the token before EOS is the last one, as it is for the score.

    Returns:
        `torch.Tensor` of shape `(batch, hidden)`.

    Raises:
        ValueError: if the model put tokens of its own beside the text, as prompt tuning does.
    """
    if hidden.ndim == 2:
        return hidden
    if hidden.shape[:2] != input_ids.shape:
        raise ValueError(
            f"The score layer saw {hidden.shape[1]} positions for {input_ids.shape[1]} tokens, so the scored one "
            "cannot be told. Use an adapter that adds no tokens (LoRA), or train the whole model."
        )
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (positions * (input_ids != pad_token_id)).argmax(dim=1)  # (batch,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last.to(hidden.device)]  # (batch, hidden)


def add_score_head(peft_config: PeftConfig) -> PeftConfig:
    """
    Gives an adapter configuration that trains the score head and saves it with the adapter.

    A configuration for `SEQ_CLS` does so already. Any other leaves the head frozen at its random start, and drops it
    when the adapter is saved.

    Args:
        peft_config (`peft.PeftConfig`):
            Configuration of an adapter; it is not changed.

    Returns:
        `peft.PeftConfig`: the same, or a copy with the head in `modules_to_save`.
    """
    if peft_config.task_type == TaskType.SEQ_CLS or not hasattr(peft_config, "modules_to_save"):
        return peft_config
    saved = list(peft_config.modules_to_save or [])
    if set(saved) & set(SCORE_HEADS):
        return peft_config
    logger.warning(
        "`peft_config` neither trains nor saves the score head, so it is added to `modules_to_save`. Set "
        '`task_type="SEQ_CLS"` to say so yourself.'
    )
    peft_config = copy.copy(peft_config)
    peft_config.modules_to_save = [*saved, "classifier", "score"]
    return peft_config
