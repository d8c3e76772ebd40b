"""Loading and measuring encoders (NLI classifiers, sentence embedders): what both equivalences need of a model."""

import hashlib

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


# A core is busy with a few hundred tokens; more only fall out of its cache.
_CPU_TOKENS_PER_BATCH = 512
_ACCELERATOR_TOKENS_PER_BATCH = 16384


def load_encoder(
    auto_class: type, model: str | PreTrainedModel, processing_class: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Gives a model and its tokenizer.

    Args:
        auto_class (`type`):
            Class that loads a named model, for example `transformers.AutoModel`.
        model (`str` or [`~transformers.PreTrainedModel`]):
            Name or folder, loaded in fp32 on a CPU or in its own dtype on an accelerator; or a loaded model, which
            stays as and where it is.
        processing_class (`transformers.PreTrainedTokenizerBase`, *optional*):
            Its tokenizer. Defaults to the one under the model's name.

    Returns:
        `tuple`: model and tokenizer.

    Raises:
        TypeError: if `model` is neither a name nor a `transformers` model.
        ValueError: if the tokenizer has no pad token.
    """
    if isinstance(model, str):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        dtype = torch.float32 if device.type == "cpu" else "auto"
        model = auto_class.from_pretrained(model, dtype=dtype).to(device)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"`model` must be a name, a folder or a `transformers` model, got `{type(model).__name__}`.")
    if processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(model.name_or_path)
    if processing_class.pad_token_id is None:
        raise ValueError("`processing_class` has no pad token, so texts cannot be batched. Set its `pad_token`.")
    return model, processing_class


def context_length(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> int:
    """
    Gives the longest input that both model and tokenizer allow.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Encoder.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Its tokenizer.

    Returns:
        `int`: tokens, special tokens included.
    """
    positions = model.config.to_dict().get("max_position_embeddings") or processing_class.model_max_length
    # RoBERTa counts positions from after its padding index, so the table has rows that no token can use.
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == positions and module.padding_idx is not None:
            return min(positions - module.padding_idx - 1, processing_class.model_max_length)
    return min(positions, processing_class.model_max_length)


def default_tokens_per_batch(model: PreTrainedModel) -> int:
    """
    Gives a batch size that keeps the model's device busy.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Encoder, where it will run.

    Returns:
        `int`: tokens a batch, padding included: 512 on a CPU, 16,384 on an accelerator.
    """
    return _CPU_TOKENS_PER_BATCH if model.device.type == "cpu" else _ACCELERATOR_TOKENS_PER_BATCH


def hash_weights(model: PreTrainedModel) -> str:
    """
    Gives a hash that two models share only if class, weights and dtypes are equal.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any model. All its weights are read once, about a second per gigabyte.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
