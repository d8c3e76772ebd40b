"""Loading of encoders (NLI classifiers and sentence embedders), and their limits. Two equivalences share it."""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.context import read_context
from trl_rlp.storage.artifacts import explain_missing_model
from trl_rlp.storage.paths import expand_path


# A few hundred tokens keep a CPU core busy. Larger batches no longer fit in its cache.
_CPU_TOKENS_PER_BATCH = 512
_ACCELERATOR_TOKENS_PER_BATCH = 16384

_REMEDY = (
    "Pass the folder or Hub name of another model, or compare texts without a model: `ExactMatch`, or "
    "`--equivalence exact` on the command line."
)


def load_encoder(
    auto_class: type, model: str | Path | PreTrainedModel, processing_class: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a model and its tokenizer.

    Args:
        auto_class (`type`):
            Class that loads a model by name, for example `transformers.AutoModel`.
        model (`str` or `Path` or [`~transformers.PreTrainedModel`]):
            Name or folder of a model, or a loaded model. A named model is loaded in fp32 on a CPU and in its own dtype
            on an accelerator. A loaded model keeps its dtype and its device.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the model. Defaults to the tokenizer under the model's name.

    Returns:
        `tuple`: The model and the tokenizer.

    Raises:
        OSError: If there is no model or no tokenizer with this name.
        TypeError: If `model` is neither a name nor a `transformers` model.
        ValueError: If the tokenizer has no pad token.
    """
    if isinstance(model, str | Path):
        model = expand_path(model)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        dtype = torch.float32 if device.type == "cpu" else "auto"
        with explain_missing_model(model, _REMEDY):
            model = auto_class.from_pretrained(model, dtype=dtype).to(device)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"`model` must be a name, a folder or a `transformers` model, got `{type(model).__name__}`.")
    if processing_class is None:
        with explain_missing_model(model.name_or_path, "Pass its tokenizer as `processing_class`."):
            processing_class = AutoTokenizer.from_pretrained(model.name_or_path)
    if processing_class.pad_token_id is None:
        raise ValueError("`processing_class` has no pad token, so texts cannot be batched. Set its `pad_token`.")
    return model, processing_class


def get_context_length(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> int:
    """
    Returns the longest input that both the model and the tokenizer allow.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Encoder.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the encoder.

    Returns:
        `int`: Length in tokens, including special tokens. `sys.maxsize` if neither has a limit.
    """
    context = read_context(model)
    # A tokenizer without a limit names 10^30 tokens, which do not fit into its own integers.
    return min(sys.maxsize if context is None else context, processing_class.model_max_length)


def choose_tokens_per_batch(model: PreTrainedModel) -> int:
    """
    Returns a batch size that keeps the model's device busy.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Encoder, on the device where it will run.

    Returns:
        `int`: Tokens per batch, including padding: 512 on a CPU, 16,384 on an accelerator.
    """
    return _CPU_TOKENS_PER_BATCH if model.device.type == "cpu" else _ACCELERATOR_TOKENS_PER_BATCH
