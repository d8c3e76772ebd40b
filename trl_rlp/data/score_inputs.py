"""The layer of a sequence classifier that computes the score, and the hidden states that enter it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from trl_rlp.storage.precision import SCORE_HEADS


def find_score_layers(model: nn.Module) -> list[nn.Module]:
    """
    Returns the layers that compute the score. Each one is a linear layer, or the adapter layer around it.

    A PEFT model can have two of them: the frozen layer and its trained copy.

    Args:
        model (`nn.Module`):
            A sequence classifier with one label, plain or inside a PEFT model.

    Returns:
        `list[nn.Module]`: Layers with the same input size. A forward pass runs one of them, and its output is the
        score. [`get_linear_layer`] returns the linear layer inside an adapter layer.

    Raises:
        ValueError: If the model has no head with a known name and a single output.
    """
    layers = find_score_layers_if_any(model)
    if layers:
        return layers
    base = _get_base_model(model)
    raise ValueError(
        f"`model` is a `{type(base).__name__}`, which has no linear score layer under one of the names {SCORE_HEADS}, "
        'so there is no hidden state to train on. Use a sequence classifier from transformers, or `method="spg"`.'
    )


def find_score_layers_if_any(model: nn.Module) -> list[nn.Module]:
    """
    Returns the layers that compute the score, as [`find_score_layers`], if there are any.

    Args:
        model (`nn.Module`):
            Any model.

    Returns:
        `list[nn.Module]`: The layers, or an empty list if the model has no head with a known name and a single output.
    """
    for name, head in _get_base_model(model).named_children():
        layers = _list_score_layers(head) if name in SCORE_HEADS else []
        if layers:
            return layers
    return []


def get_linear_layer(layer: nn.Module) -> nn.Module:
    """
    Returns the linear layer inside a score layer.

    Args:
        layer (`nn.Module`):
            A layer from [`find_score_layers`].

    Returns:
        `nn.Module`: The layer that an adapter layer adapts. Any other layer is returned unchanged.
    """
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _get_base_model(model: nn.Module) -> nn.Module:
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _list_score_layers(module: nn.Module) -> list[nn.Module]:
    """Does not search the adapter's own layers, because a narrow adapter also has layers with a single output."""
    layer = get_linear_layer(module)
    if isinstance(layer, nn.Linear):
        return [module] if layer.out_features == 1 else []
    return [found for child in layer.children() for found in _list_score_layers(child)]


@contextmanager
def capture_score_inputs(layers: list[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """
    Records the input of the score layer. The hidden states of other layers are not kept.

    Args:
        layers (`list[nn.Module]`):
            Layers from [`find_score_layers`].

    Yields:
        `list[torch.Tensor]`: A list that a forward pass fills with one tensor. Its shape is `(batch, length, hidden)`,
        or `(batch, hidden)` if the model pools before it scores.
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
    Selects the hidden state that each row's score is computed from. It belongs to the last token that is not padding.

    Args:
        hidden (`torch.Tensor` of shape `(batch, length, hidden)` or `(batch, hidden)`):
            Input of the score layer. A tensor without a length dimension is already pooled and is returned unchanged.
        input_ids (`torch.Tensor` of shape `(batch, length)`):
            Token ids of the same rows.
        pad_token_id (`int`):
            Id of the pad token. If it equals EOS, the last token is the one before EOS. The score has the same rule.

    Returns:
        `torch.Tensor` of shape `(batch, hidden)`: The hidden state of each row.

    Raises:
        ValueError: If the model adds its own tokens to the text, as prompt tuning does.
    """
    if hidden.ndim == 2:
        return hidden
    if hidden.shape[:2] != input_ids.shape:
        raise ValueError(
            f"The score layer got {hidden.shape[1]} positions for {input_ids.shape[1]} tokens, so the position of the "
            "score is unknown. Use an adapter that adds no tokens (LoRA), or train the whole model."
        )
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (positions * (input_ids != pad_token_id)).argmax(dim=1)  # (batch,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last.to(hidden.device)]  # (batch, hidden)
