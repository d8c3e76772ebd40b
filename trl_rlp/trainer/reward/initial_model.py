"""The model that reward learning starts from, separate from the training stage because it needs no trainer."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from trl_rlp.data.padding import ensure_pad_token
from trl_rlp.storage.adapters import find_adapter, load_merged_model
from trl_rlp.storage.artifacts import HUB_OPTIONS, explain_missing_model, load_tokenizer
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.whole_weights import whole_weights


def init_reward_model(
    path: str | Path, seed: int, model_init_kwargs: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads the SFT model with a new score head and a separate pad token, as the start of reward learning.

    The same seed gives the same head. The reward model r_φ and the refined reward model r̂_φ therefore start from the
    same weights, as in the paper.

    Args:
        path (`str` or `Path`):
            Folder or Hub name of the SFT model, or of an adapter for one, which is merged.
        seed (`int`):
            Random seed of the head.
        model_init_kwargs (`dict`, *optional*):
            Options for `from_pretrained`. `dtype` defaults to `"float32"`, as in TRL's `RewardTrainer`.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: The model and its tokenizer.

    Raises:
        OSError: If there is no such model.
    """
    set_seed(seed)
    path = expand_path(path)
    options = {"dtype": "float32", **(model_init_kwargs or {}), "num_labels": 1}
    with explain_missing_model(path), whole_weights():  # a trainer shards the model later, and a new row must be whole
        adapter = find_adapter(path, options.get("revision"))
        if adapter is None:
            model = AutoModelForSequenceClassification.from_pretrained(path, **options)
        else:
            model = load_merged_model(AutoModelForSequenceClassification, path, adapter, **options)
        tokenizer_options = {name: options[name] for name in HUB_OPTIONS if name in options}
        processing_class = load_tokenizer(path, **tokenizer_options)
        ensure_pad_token(model, processing_class)
    return model, processing_class
