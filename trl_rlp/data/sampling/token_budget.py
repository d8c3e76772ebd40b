"""The token budget of a sampling batch, which follows the free memory of the device."""

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel


CPU_TOKENS = 8192
"""Token budget on the CPU, and on a device whose free memory PyTorch cannot tell."""

MEMORY_SHARE = 0.6
"""Share of the free memory that a batch may need by the estimate. The rest is for activations and fragments."""

LOGIT_BYTES = 32
"""Bytes per sequence and word of the vocabulary: the logits in fp32, their processed copies, and the noise."""


def estimate_token_bytes(model: PreTrainedModel | PeftModel, max_new_tokens: int) -> float:
    r"""
    Estimates the memory that a token of a sampling batch needs.

    $$2 \cdot \mathrm{layers} \cdot \mathrm{KV\,heads} \cdot \mathrm{head\,size} \cdot \mathrm{bytes} +
    \frac{32 \cdot \mathrm{vocabulary}}{\mathrm{max\_new\_tokens} + 1}$$

    The first term is the KV cache. The second term is the logits of a sequence, divided by the shortest length that a
    sequence can have. Layers with a smaller cache, such as sliding windows and recurrent layers, are counted as full
    attention.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        max_new_tokens (`int`):
            Maximum length of a completion, in tokens.

    Returns:
        `float`: Bytes per token.
    """
    config = model.config.get_text_config()
    # The heads of Gemma 4 differ between layers. Transformers 5.0 has no such models.
    is_mixed = getattr(config, "is_heterogeneous", False)
    layers = list(config.per_layer_config) if is_mixed else [config] * config.num_hidden_layers
    cache = 2 * sum(map(_count_keys, layers)) * model.dtype.itemsize
    return cache + LOGIT_BYTES * config.vocab_size / (max_new_tokens + 1)


def _count_keys(layer: PreTrainedConfig) -> int:
    """Returns the size of a layer's keys for one token. Mamba has no heads."""
    heads = getattr(layer, "num_attention_heads", None)
    if heads is None:
        return layer.hidden_size
    kv_heads = getattr(layer, "num_key_value_heads", None) or heads
    return kv_heads * (getattr(layer, "head_dim", None) or layer.hidden_size // heads)


def choose_tokens_per_batch(model: PreTrainedModel | PeftModel, max_new_tokens: int) -> int:
    """
    Chooses the token budget of a sampling batch.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, on its device.
        max_new_tokens (`int`):
            Maximum length of a completion, in tokens.

    Returns:
        `int`: Number of tokens that fit into the free memory of the device by [`estimate_token_bytes`]. `8192` on the
        CPU.
    """
    free = _count_free_bytes(model.device)
    if free is None:
        return CPU_TOKENS
    return max(1, int(MEMORY_SHARE * free / estimate_token_bytes(model, max_new_tokens)))


def _count_free_bytes(device: torch.device) -> int | None:
    """Counts the bytes that a tensor could take. The free blocks in PyTorch's own cache are among them."""
    module = {"cuda": torch.cuda, "xpu": torch.xpu}.get(device.type)
    if module is None:
        return None
    free, _ = module.mem_get_info(device)
    return free + module.memory_reserved(device) - module.memory_allocated(device)
