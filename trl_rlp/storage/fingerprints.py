"""Fingerprints that tell one policy, tokenizer or set of prompts from another."""

import json
from typing import Any

import torch
import xxhash
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase


def weights_fingerprint(model: nn.Module) -> str:
    """
    Gives a fingerprint of a model: names, types, shapes and bytes of all its tensors, and which adapters are in use.

    It does not know the model's config: the same weights read another way (a changed RoPE scaling) look the same.
    About 0.2 s a gigabyte on a CPU; weights on an accelerator are copied to the host, one tensor at a time.

    Args:
        model (`torch.nn.Module`):
            A model with its weights in memory. A PEFT model with its adapters disabled differs from one with them
            enabled.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if isinstance(model, PeftModel) and not model.active_peft_config.is_prompt_learning:
        status = model.get_model_status()
        digest.update(f"{status.enabled} {status.active_adapters} {status.merged_adapters}".encode())
    return digest.hexdigest()


def tokenizer_fingerprint(processing_class: PreTrainedTokenizerBase) -> str:
    """
    Gives a fingerprint of a tokenizer: its vocabulary and its chat template.

    Args:
        processing_class (`transformers.PreTrainedTokenizerBase`):
            The tokenizer.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    return value_fingerprint([processing_class.get_vocab(), processing_class.chat_template])


def value_fingerprint(value: Any) -> str:
    """
    Gives a fingerprint of plain values, such as a list of prompts. Order counts in lists, not in dictionaries.

    Args:
        value:
            Anything `json` can write.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True).encode()).hexdigest()
