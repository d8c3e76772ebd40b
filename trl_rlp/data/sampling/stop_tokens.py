"""The tokens that end a completion."""

import operator
from collections.abc import Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def get_eos_token_ids(model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase) -> list[int]:
    """
    Returns the tokens that end a completion: the tokenizer's EOS token and those of the model's generation config.

    Training appends the tokenizer's EOS token, so it ends a completion even if the generation config does not name it.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.

    Returns:
        `list[int]`: Token ids, the tokenizer's EOS token first.

    Raises:
        TypeError: If the model cannot generate.
        ValueError: If the model is an encoder-decoder, or the tokenizer lacks an EOS token.
    """
    # torch.compile wraps a model in another class.
    is_module = isinstance(model, torch.nn.Module)
    unwrapped = extract_model_from_parallel(model, keep_torch_compile=False) if is_module else model
    if not isinstance(unwrapped, PreTrainedModel | PeftModel) or not unwrapped.can_generate():
        raise TypeError(
            f"`model` must be a causal LM, got `{type(model).__name__}`. Load it with "
            "`AutoModelForCausalLM.from_pretrained`."
        )
    if model.config.is_encoder_decoder:
        raise ValueError("`model` is an encoder-decoder, but a policy must be a decoder-only causal LM. Pass one.")
    if processing_class.eos_token_id is None:
        raise ValueError("`processing_class` has no EOS token, so no completion could end. Set its `eos_token`.")
    model_ids = model.generation_config.eos_token_id
    model_ids = [] if model_ids is None else model_ids if isinstance(model_ids, list) else [model_ids]
    return list(dict.fromkeys([processing_class.eos_token_id, *model_ids]))


def require_stop_token_ids(stop_token_ids: Sequence[int], model: PreTrainedModel | PeftModel) -> list[int]:
    """
    Checks the tokens that the user wants to end a completion.

    Args:
        stop_token_ids (`Sequence[int]`):
            Token ids.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.

    Returns:
        `list[int]`: The token ids.

    Raises:
        TypeError: If they are not integers in a list.
        ValueError: If a token is outside of the policy's vocabulary.
    """
    try:
        ids = [operator.index(token) for token in stop_token_ids]
    except TypeError:
        raise TypeError(f"`stop_token_ids` must be a list of integers, got {stop_token_ids!r}.") from None
    vocab_size = model.config.get_text_config().vocab_size
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(
            f"`stop_token_ids` has {outside[:10]}, but the policy's vocabulary has the tokens 0 to {vocab_size - 1}. "
            "Remove them."
        )
    return ids
