"""The context of a model: the longest input that it can read."""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names under which configs list the number of positions. The first one that a config has is used."""

SCALED_TYPES = ("linear", "dynamic", "yarn", "longrope")
"""Types of RoPE scaling that extend a context to `factor` times the original one. `llama3` lists the extended one."""


def read_context(model: PreTrainedModel | PeftModel) -> int | None:
    """
    Returns the longest input that a model can read.

    It is the number of positions in the config, with two corrections:
    - Scaled RoPE extends the context to `factor` times the original one. Some configs list the extended context
      already. It is not multiplied again.
    - RoBERTa and similar models start counting positions after their padding index, so no token can use the first rows
      of the table.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Any model of `transformers`.

    Returns:
        `int` or `None`: Length in tokens, with special tokens. `None` for a model without a limit: the config lists no
        number of positions (Mamba), 0 or less, or the model uses ALiBi.

    Example:

    ```python
    >>> read_context(model)  # Qwen2.5 with YaRN: `max_position_embeddings`=32768, `factor`=4
    131072
    ```
    """
    config = model.config.get_text_config().to_dict()
    positions = next((config[name] for name in POSITION_FIELDS if config.get(name)), 0)
    if positions <= 0 or _uses_alibi(config):
        return None
    reserved = _count_reserved_positions(model, positions)
    return positions - reserved if reserved else _extend_by_rope(positions, config)


def _uses_alibi(config: dict[str, Any]) -> bool:
    """Checks whether a bias of the attention replaces positions, under the names of Falcon, MPT and Jina's BERT."""
    attention = config.get("attn_config") or {}
    return bool(config.get("alibi") or attention.get("alibi") or config.get("position_embedding_type") == "alibi")


def _count_reserved_positions(model: PreTrainedModel | PeftModel, positions: int) -> int:
    """Returns the number of rows of the position table that no token can use."""
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if is_table and module.num_embeddings == positions and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _extend_by_rope(positions: int, config: dict[str, Any]) -> int:
    """Returns the context after RoPE scaling. Models with several types of layers list parameters for each type."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    layers = [entry for entry in parameters.values() if isinstance(entry, dict)]
    if not layers:
        return _scale_positions(positions, parameters)
    # Gemma 3 scales some of its layers linearly, lists no original context, and lists the extended one.
    return max(_scale_positions(positions, entry, original=positions / (entry.get("factor") or 1)) for entry in layers)


def _scale_positions(positions: int, parameters: dict[str, Any], original: float | None = None) -> int:
    """Returns the extended context. `original` is used if the parameters list no original context."""
    kind = parameters.get("rope_type", parameters.get("type"))
    if kind not in SCALED_TYPES:
        return positions
    original = parameters.get("original_max_position_embeddings") or original or positions
    return max(positions, int((parameters.get("factor") or 1) * original))
