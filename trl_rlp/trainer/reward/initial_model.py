"""The model that reward learning starts from."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from trl_rlp.data.padding import ensure_pad_token
from trl_rlp.storage.artifacts import explain_missing_model


def init_reward_model(
    path: str | Path, seed: int, model_init_kwargs: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Gives the model that reward learning starts from: the SFT model with a fresh score head and a pad token of its own.

    The same seed gives the same head, so that r_φ and r̂_φ start from one point (METHOD: the retrained reward model
    starts where the first one started).

    Args:
        path (`str` or `Path`):
            Folder or Hub name of the SFT model.
        seed (`int`):
            Seed of the head.
        model_init_kwargs (`dict`, *optional*):
            For `from_pretrained`; `dtype` defaults to `"float32"`, as in TRL's `RewardTrainer`.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`.
    """
    set_seed(seed)
    kwargs = {"dtype": "float32", **(model_init_kwargs or {}), "num_labels": 1}
    with explain_missing_model(path):
        model = AutoModelForSequenceClassification.from_pretrained(path, **kwargs)
        of_hub = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
        processing_class = AutoTokenizer.from_pretrained(path, **of_hub)
    ensure_pad_token(model, processing_class)
    return model, processing_class
