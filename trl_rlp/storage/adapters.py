"""Models that are saved as an adapter: loads the base model and merges the adapter into it."""

import copy
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from trl_rlp.storage.precision import cast_weights, is_half


def find_adapter(path: str | Path, revision: str | None = None) -> PeftConfig | None:
    """
    Returns the configuration of an adapter.

    Args:
        path (`str` or `Path`):
            Folder or Hub name of a model or of an adapter.
        revision (`str`, *optional*):
            Version on the Hub.

    Returns:
        `peft.PeftConfig` or `None`: The configuration. `None` if there is no adapter.
    """
    if find_adapter_config_file(str(path), revision=revision) is None:
        return None
    return PeftConfig.from_pretrained(str(path), revision=revision)


def load_merged_model(auto_class: type, path: str | Path, adapter: PeftConfig, **options: Any) -> PreTrainedModel:
    """
    Loads the base model of an adapter and merges the adapter into it.

    `auto_class.from_pretrained(path)` would leave the adapter inside the model and freeze all weights, so training
    would change nothing. For a dtype of 16 bits, the adapter is merged in fp32 before the weights are rounded.
    Otherwise small changes would be lost.

    Args:
        auto_class (`type`):
            Auto class of transformers.
        path (`str` or `Path`):
            Folder or Hub name of the adapter.
        adapter ([`~peft.PeftConfig`]):
            Result of [`find_adapter`]. It names the base model and its version.
        options:
            Further arguments of `from_pretrained`. `revision` is that of the adapter.

    Returns:
        [`~transformers.PreTrainedModel`]: A plain model. Its weights can be trained.

    Raises:
        OSError: If there is no base model.
        ValueError: If the adapter uses virtual tokens, which cannot be merged, or the base model is quantized.
    """
    if adapter.is_prompt_learning:
        raise ValueError(
            f"'{path}' is an adapter of virtual tokens (`{adapter.peft_type.value}`), which cannot be merged into its "
            "model. Pass a model or an adapter that changes weights, such as LoRA."
        )
    revision, dtype = options.pop("revision", None), options.pop("dtype", "auto")
    _require_plain_base(path, adapter, options)
    base = auto_class.from_pretrained(
        adapter.base_model_name_or_path,
        revision=adapter.revision,
        dtype="float32" if is_half(dtype) else dtype,
        **options,
    )
    dtype = dtype if is_half(dtype) else base.dtype  # that of the checkpoint may have 16 bits
    if is_half(dtype):
        base.float()
    adapter = copy.copy(adapter)
    adapter.task_type = None  # the adapter of a policy also fits a reward model with a new score head
    model = PeftModel.from_pretrained(base, str(path), config=adapter, revision=revision).merge_and_unload()
    if is_half(dtype):
        cast_weights(model, dtype)
    for parameter in model.parameters():  # PEFT has frozen the base model
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def _require_plain_base(path: str | Path, adapter: PeftConfig, options: dict[str, Any]) -> None:
    """Refuses to merge into quantized weights, which would round the adapter away."""
    base = adapter.base_model_name_or_path
    hub_options = {"revision": adapter.revision, "trust_remote_code": options.get("trust_remote_code")}
    config = options.get("quantization_config")
    if config is None:
        config = getattr(AutoConfig.from_pretrained(base, **hub_options), "quantization_config", None)
    if config is not None:
        raise ValueError(
            f"The adapter '{path}' would be merged into quantized weights of '{base}', which rounds it. Load it "
            "without `quantization_config`, onto a base model that is not quantized."
        )
