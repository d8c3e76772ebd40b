"""Chooses the precision of a run whose user did not set one, and checks the dtype of its models."""

from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available


def default_precision(config: TrainingArguments) -> bool:
    """
    Returns the value for `bf16`: the user's choice, or whether this machine can train in bf16.

    TRL's configurations turn on bf16 unless `fp16` is set, and then fail on a machine without an accelerator. This
    function keeps fp32 on such a machine. A value that the user set is kept, and fails as in TRL if the machine does
    not support it.

    Args:
        config (`transformers.TrainingArguments`):
            A TRL configuration before its `__post_init__`. Its `bf16` may be `None`.

    Returns:
        `bool`: Whether to train in bf16.

    Example:

    ```python
    def __post_init__(self):
        self.bf16 = default_precision(self)
        super().__post_init__()
    ```
    """
    return _should_use_bf16(config.bf16, config.fp16, config.use_cpu)


def supported_precision(args: dict[str, Any]) -> dict[str, Any]:
    """
    Adds `bf16` to the arguments of one of TRL's own configurations, with the value of [`default_precision`].

    Args:
        args (`dict[str, Any]`):
            Fields of the configuration.

    Returns:
        `dict[str, Any]`: The same fields and `bf16`.

    Example:

    ```python
    >>> supported_precision({"use_cpu": True})
    {'use_cpu': True, 'bf16': False}
    ```
    """
    bf16 = _should_use_bf16(args.get("bf16"), args.get("fp16", False), args.get("use_cpu", False))
    return {**args, "bf16": bf16}


def require_dtype(model_init_kwargs: dict[str, Any] | None) -> None:
    """
    Checks the name of a dtype. transformers would look it up in PyTorch only when a model is loaded.

    Args:
        model_init_kwargs (`dict`, *optional*):
            Options of `from_pretrained`, as in TRL's configurations.

    Raises:
        ValueError: If there is no such dtype.
    """
    dtype = (model_init_kwargs or {}).get("dtype", "auto")
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"`model_init_kwargs.dtype` must be 'auto' or a dtype such as 'bfloat16', got {dtype!r}.")


def _should_use_bf16(bf16: bool | None, fp16: bool, use_cpu: bool) -> bool:
    if bf16 is not None:
        return bf16
    return not (fp16 or use_cpu) and (is_torch_bf16_gpu_available() or is_torch_xla_available())
