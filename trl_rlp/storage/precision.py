"""The precision of models that only infer: bf16 on an accelerator, with the score head in fp32."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_torch_bf16_gpu_available


INFERENCE_DTYPES = ("auto", "float32", "bfloat16")
"""Values of the settings `inference_dtype` and `dtype` of models that only infer."""

SCORE_HEADS = ("score", "classifier", "classification_head")
"""Attribute names of the score head in the sequence classifiers of transformers."""

HALF = (torch.bfloat16, torch.float16)


def choose_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> str | torch.dtype:
    """
    Returns the `dtype` of `from_pretrained` for a model that only infers.

    Args:
        device (`torch.device`):
            Device of the model.
        dtype (`str` or `torch.dtype`, *optional*):
            The user's choice. It is returned unchanged.

    Returns:
        `str` or `torch.dtype`: `"bfloat16"` on an accelerator that computes in bf16. `"auto"`, the dtype of the
        checkpoint, on any other device.
    """
    if dtype is not None:
        return dtype
    return "bfloat16" if _computes_in_bf16(device) else "auto"


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" and is_torch_bf16_gpu_available()


def require_inference_dtype(name: str, dtype: Any) -> None:
    """
    Checks the dtype of models that only infer.

    Args:
        name (`str`):
            Name of the setting, for the error message.
        dtype:
            The user's value.

    Raises:
        ValueError: If it is not one of [`INFERENCE_DTYPES`].
    """
    if dtype not in INFERENCE_DTYPES:
        raise ValueError(f"`{name}` must be one of {INFERENCE_DTYPES}, got {dtype!r}.")


def dtype_option(dtype: str) -> dict[str, str]:
    """
    Converts the dtype of models that only infer to an option of [`load_policy`] and [`load_reward_model`].

    Args:
        dtype (`str`):
            One of [`INFERENCE_DTYPES`].

    Returns:
        `dict`: `dtype`. Empty for `"auto"`, because the two functions choose by the device.
    """
    return {} if dtype == "auto" else {"dtype": dtype}


def is_half(dtype: str | torch.dtype) -> bool:
    """
    Checks whether a dtype has 16 bits.

    Args:
        dtype (`str` or `torch.dtype`):
            A dtype or its name. `"auto"` is not one.

    Returns:
        `bool`: Whether it is bf16 or fp16.
    """
    return dtype in HALF or dtype in [str(half).removeprefix("torch.") for half in HALF]


def is_quantized(model: PreTrainedModel) -> bool:
    """
    Checks whether a model has quantized weights.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A loaded model.

    Returns:
        `bool`: Whether its configuration says so.
    """
    return getattr(model.config, "quantization_config", None) is not None


def cast_weights(model: PreTrainedModel, dtype: str | torch.dtype) -> None:
    """
    Casts the weights of a model to bf16 or fp16, in place. The score head stays in fp32, and computes in fp32.

    Rewards in bf16 have three significant digits, so different completions would often get the same reward. Buffers,
    such as the frequencies of rotary positions, are not cast, and neither are the weights that transformers always
    keeps in fp32.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A loaded model. It is not quantized.
        dtype (`str` or `torch.dtype`):
            A dtype of 16 bits, or its name.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    heads = {name: head for name, head in model.named_children() if name in SCORE_HEADS}
    kept = model._keep_in_fp32_modules_strict
    for name, parameter in model.named_parameters():
        is_kept = name.split(".")[0] in heads or any(part in name for part in kept)
        if parameter.is_floating_point() and not is_kept:
            parameter.data = parameter.data.to(dtype)
    for head in heads.values():
        compute_in_fp32(head)
    model.config.dtype = dtype


def compute_in_fp32(head: nn.Module) -> None:
    """
    Casts a score head to fp32, in place, and its input whenever it runs.

    Args:
        head (`nn.Module`):
            Score head of a model whose hidden states have another dtype.
    """
    head.float().register_forward_pre_hook(_cast_input)


def _cast_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Casts the input of a head to the dtype of its weights. A copy of the model may be cast to another dtype."""
    dtype = next((parameter.dtype for parameter in module.parameters()), inputs[0].dtype)
    return (inputs[0].to(dtype), *inputs[1:])
