"""Models that are saved as an adapter: loads the base model and merges the adapter into it."""

import copy
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file


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
    would change nothing.

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
        [`~transformers.PreTrainedModel`]: A plain model. Its weights can be trained, except quantized ones.

    Raises:
        OSError: If there is no base model.
        ValueError: If the adapter uses virtual tokens, which cannot be merged.
    """
    if adapter.is_prompt_learning:
        raise ValueError(
            f"'{path}' is an adapter of virtual tokens (`{adapter.peft_type.value}`), which cannot be merged into its "
            "model. Pass a model or an adapter that changes weights, such as LoRA."
        )
    revision = options.pop("revision", None)
    base = auto_class.from_pretrained(adapter.base_model_name_or_path, revision=adapter.revision, **options)
    adapter = copy.copy(adapter)
    adapter.task_type = None  # the adapter of a policy also fits a reward model with a new score head
    model = PeftModel.from_pretrained(base, str(path), config=adapter, revision=revision).merge_and_unload()
    for parameter in model.parameters():  # PEFT has frozen the base model
        parameter.requires_grad_(parameter.is_floating_point())
    return model
