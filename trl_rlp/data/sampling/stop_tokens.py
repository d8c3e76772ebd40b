"""The tokens that end a completion."""

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
