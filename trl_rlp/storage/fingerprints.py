"""Fingerprints of models, tokenizers and plain values. Equal fingerprints mean equal contents."""

import json
from typing import Any

import torch
import xxhash
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase


def weights_fingerprint(model: nn.Module) -> str:
    """
    Computes a fingerprint of a model from the names, types, shapes and bytes of its tensors and its active adapters.

    It does not include the config of the model. Two models with the same weights but different configs, such as
    another RoPE scaling, have the same fingerprint. It takes about 0.2 s per gigabyte on a CPU. Weights on an
    accelerator are copied to the host, one tensor at a time.

    Args:
        model (`torch.nn.Module`):
            A model with its weights in memory. A PEFT model has different fingerprints with its adapters enabled and
            disabled.

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
    Computes a fingerprint of a tokenizer from its vocabulary and its chat template.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    return value_fingerprint([processing_class.get_vocab(), processing_class.chat_template])


def value_fingerprint(value: Any) -> str:
    """
    Computes a fingerprint of plain values, such as a list of prompts.

    The order of lists matters. The order of dictionaries does not.

    Args:
        value:
            Any value that `json` can write.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True).encode()).hexdigest()
