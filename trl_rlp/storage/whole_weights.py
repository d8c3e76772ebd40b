"""Whole weights on every process: loads models as if they were not to be sharded by FSDP or DeepSpeed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from accelerate.utils import str_to_bool
from packaging.version import Version
from transformers.integrations import deepspeed


EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Environment variable through which accelerate tells transformers to load weights on the first process only."""

LOADS_EVERYWHERE = Version("5.23")
"""First version of transformers that loads weights on every process in spite of the variable."""


@contextmanager
def whole_weights() -> Iterator[None]:
    """
    Loads and creates models with all of their weights on every process.

    Under FSDP with `cpu_ram_efficient_loading`, transformers before 5.23 leaves the weights empty on all processes but
    the first, until accelerate prepares the model. With ZeRO-3, it splits them among the processes at once. Models
    that are never prepared, such as those that sample, score or compare completions, would compute garbage.
    """
    efficient = os.environ.pop(EFFICIENT_LOADING, None)
    reference = deepspeed._hf_deepspeed_config_weak_ref
    zero = None if reference is None else reference()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if efficient is not None:
            os.environ[EFFICIENT_LOADING] = efficient
        if zero is not None:
            deepspeed.set_hf_deepspeed_config(zero)


def require_whole_weights(name: str) -> None:
    """
    Checks that a model which the user has loaded has its weights on every process.

    Args:
        name (`str`):
            Name of the argument, for the error message.

    Raises:
        ValueError: If transformers leaves weights empty on some processes.
    """
    is_fsdp = str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    is_efficient = str_to_bool(os.environ.get(EFFICIENT_LOADING, "false"))
    if is_fsdp and is_efficient and Version(transformers.__version__) < LOADS_EVERYWHERE:
        raise ValueError(
            f"`{name}` has empty weights on all processes but the first, because `fsdp_cpu_ram_efficient_loading` is "
            f"true and transformers is {transformers.__version__}. Set `fsdp_cpu_ram_efficient_loading: false`, or "
            f"install transformers>={LOADS_EVERYWHERE}."
        )
