"""Log-probabilities of completions under a causal LM, with logits at the completions' tokens only."""

import inspect

import torch
from peft import PeftModel
from torch import nn

from trl_rlp.losses.log_probs import token_log_probs


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Gives the position of each token in its text, so that padding on the left moves nothing.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 where there is text.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: from 0; 0 in padding on the left.
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def accepts_position_ids(model: nn.Module) -> bool:
    """
    Says whether a model is told positions; models that are not have none, or work them out from the mask.

    Args:
        model (`nn.Module`):
            Not wrapped for distribution.

    Returns:
        `bool`.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "position_ids" in inspect.signature(base.forward).parameters


def completion_log_probs(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_tokens: int,
    temperature: float,
    with_positions: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gives log-probability and entropy of each token of the completions.

    Args:
        model (`nn.Module`):
            Causal LM, possibly wrapped for distribution.
        input_ids (`torch.Tensor` of shape `(batch, length)`):
            Prompts, padded on the left, and completions, padded on the right.
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 where there is text.
        num_tokens (`int`):
            Tokens of a completion, padding included; smaller than `length`.
        temperature (`float`):
            The logits are divided by it.
        with_positions (`bool`, *optional*, defaults to `True`):
            What [`accepts_position_ids`] says of the model.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, num_tokens)`, in nats; in padding without meaning.
    """
    length = input_ids.shape[1]
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **({"position_ids": position_ids_from_mask(attention_mask)} if with_positions else {}),
        # The positions themselves, not their number: a slice would cost a copy of the gradient.
        logits_to_keep=torch.arange(length - num_tokens - 1, length - 1, device=input_ids.device),
        use_cache=False,
    ).logits  # (batch, num_tokens, vocabulary)
    return token_log_probs(logits, input_ids[:, -num_tokens:], temperature)
