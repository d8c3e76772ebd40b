"""Which precision a configuration gets when its user named none."""

from typing import Any

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available


def default_precision(config: TrainingArguments) -> bool:
    """
    Gives the value that `bf16` should take: the user's choice, else whether this machine trains in bf16.

    TRL's configurations take bf16 unless `fp16` is set, and then fail on a machine without an accelerator. This one
    leaves fp32 there. What the user set stays as it is, and fails as TRL's does where it cannot work.

    Args:
        config (`transformers.TrainingArguments`):
            A configuration of TRL's kind, whose `bf16` may be `None`, before its `__post_init__`.

    Returns:
        `bool`: whether to train in bf16.

    Example:

    ```python
    def __post_init__(self):
        self.bf16 = default_precision(self)
        super().__post_init__()
    ```
    """
    return _bf16(config.bf16, config.fp16, config.use_cpu)


def supported_precision(args: dict[str, Any]) -> dict[str, Any]:
    """
    Gives the arguments for one of TRL's own configurations with `bf16` set as [`default_precision`] would.

    Args:
        args (`dict[str, Any]`):
            Fields of a configuration.

    Returns:
        `dict[str, Any]`: the same, and `bf16`.

    Example:

    ```python
    >>> supported_precision({"use_cpu": True})
    {'use_cpu': True, 'bf16': False}
    ```
    """
    return {**args, "bf16": _bf16(args.get("bf16"), args.get("fp16", False), args.get("use_cpu", False))}


def _bf16(bf16: bool | None, fp16: bool, use_cpu: bool) -> bool:
    if bf16 is not None:
        return bf16
    return not (fp16 or use_cpu) and (is_torch_bf16_gpu_available() or is_torch_xla_available())
