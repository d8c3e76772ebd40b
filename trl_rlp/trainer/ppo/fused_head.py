"""TRL's fused LM head, for log-probabilities without logits of the whole vocabulary, and which models can use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head


KNOWN_CHANGES = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
)
"""Fields of a model's config that change the logits after the LM head, and that TRL's fused head applies."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def has_plain_head(model: nn.Module) -> bool:
    """
    Checks whether the LM head of a model is a linear layer without an adapter and without quantized weights.

    The fused head reads the weights of the layer, so it would ignore an adapter. If FSDP2 shards the layer by itself,
    the fused head would also miss that FSDP2 averages the gradient over the processes.

    Args:
        model (`nn.Module`):
            Causal LM, not wrapped for distributed training.

    Returns:
        `bool`: `False` also for a model that its user has compiled, because the fused head replaces its `forward`.
    """
    if is_compiled_module(model):
        return False
    head = _get_base_model(model).get_output_embeddings()
    return isinstance(head, nn.Linear) and not isinstance(head, FSDPModule) and head.weight.dtype in FLOATS


@torch.no_grad()
def fits_fused_head(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> bool:
    """
    Checks whether TRL's fused head knows everything that a model does with the output of its LM head.

    It runs the model once, unless the config has one of [`KNOWN_CHANGES`]. All processes must call it together if the
    model is sharded.

    Args:
        model (`nn.Module`):
            Causal LM with a plain head, possibly wrapped for distributed training.
        input_ids (`torch.Tensor` of shape `(batch, length)`):
            Token ids. A few are enough.
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 at tokens.

    Returns:
        `bool`: Whether the logits are the output of the head, or changed in a known way.
    """
    base = _get_base_model(model)
    config = base.config.get_text_config()
    if any(getattr(config, name, None) is not None for name in KNOWN_CHANGES):
        return True
    outputs: list[torch.Tensor] = []
    handle = base.get_output_embeddings().register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    finally:
        handle.remove()
    expected = outputs[-1].float()  # (batch, length, vocabulary)
    return logits.shape == expected.shape and torch.allclose(logits.float(), expected, rtol=0, atol=0, equal_nan=True)


def fused_log_probs(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_tokens: int,
    position_ids: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Computes the log-probability of each completion token in fp32, and the entropy, without logits of all tokens.

    Args:
        model (`nn.Module`):
            Causal LM with TRL's fused head, possibly wrapped for distributed training. The head knows the temperature.
        input_ids (`torch.Tensor` of shape `(batch, length)`):
            Prompts, padded on the left, and completions, padded on the right.
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 at tokens.
        num_tokens (`int`):
            Length of the padded completions, less than `length`.
        position_ids (`torch.Tensor` of shape `(batch, length)`, *optional*):
            Position of each token in its text. `None` for a model that does not accept positions.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, num_tokens)`: Log-probabilities and entropies, in
        nats. They are 0 at padding. The entropies have no gradient, and are `None` for a reference policy.
    """
    labels = input_ids.masked_fill(attention_mask == 0, -100)  # (batch, length)
    labels[:, :-num_tokens] = -100
    outputs = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **({} if position_ids is None else {"position_ids": position_ids}),
        labels=labels,
        fused_lm_head=True,
    )
    entropies = None if outputs.entropy is None else outputs.entropy[:, -num_tokens:].detach()
    return outputs.log_probs[:, -num_tokens:], entropies


def build_fused_forward(model: nn.Module, temperature: float, cast_lm_head_to_fp32: bool) -> MethodType:
    """
    Builds a `forward` with TRL's fused head. The model itself is not changed.

    Args:
        model (`nn.Module`):
            Causal LM, possibly wrapped for distributed training.
        temperature (`float`):
            The logits are divided by it.
        cast_lm_head_to_fp32 (`bool`):
            Whether the head computes in fp32.

    Returns:
        `MethodType`: A method for [`use_forward`].
    """
    base = _get_base_model(model)
    before = vars(base).get("forward")
    add_fused_lm_head(base, temperature=temperature, cast_lm_head_to_fp32=cast_lm_head_to_fp32)
    forward = vars(base).pop("forward")
    if before is not None:
        base.forward = before
    return forward


@contextmanager
def use_forward(model: nn.Module, forward: MethodType | None) -> Iterator[None]:
    """
    Replaces the `forward` of a model, and restores it afterwards.

    Args:
        model (`nn.Module`):
            Causal LM, possibly wrapped for distributed training.
        forward (`MethodType`, *optional*):
            Result of [`build_fused_forward`]. `None` changes nothing.
    """
    if forward is None:
        yield
        return
    base = _get_base_model(model)
    before = vars(base).get("forward")
    base.forward = forward
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


def _get_base_model(model: nn.Module) -> PreTrainedModel:
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model
