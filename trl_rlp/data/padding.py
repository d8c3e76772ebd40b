"""A separate pad token for the reward model. Without it, EOS may be treated as padding."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Names of tokens that tokenizers ship for padding only.
PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")


def ensure_pad_token(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> None:
    """
    Sets a pad token that no text contains on a reward model and its tokenizer. The model then scores EOS.

    A reward is read at the last token that is not padding. TRL sets pad to EOS for tokenizers without a pad token. The
    reward is then read at the token before EOS. This function keeps the tokenizer's pad token if it has no other role.
    Otherwise it takes one of `PAD_TOKENS` from the vocabulary. If there is none, it adds `<|pad|>` with an embedding
    row of zeros. Other embedding rows do not change. Both arguments are changed in place. Call the function before you
    train the reward model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model. Its `config.pad_token_id` is set. It must not be wrapped by PEFT if its embedding has to
            grow.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer. Its `pad_token` is set. Save it with the model.

    Raises:
        ValueError: If the embedding of a PEFT model would have to grow, or if ZeRO-3 has sharded the model.
    """
    token = _choose_pad_token(processing_class)
    vocabulary = processing_class.get_vocab()
    token_id = vocabulary[token] if token in vocabulary else len(processing_class)
    size = model.get_input_embeddings().weight.shape[0]
    if size == 0:
        raise ValueError(
            "`model` is sharded by ZeRO-3, so its embedding has no rows here. Load the model before the configuration "
            "of the trainer is created, and call `ensure_pad_token` then."
        )
    if token_id >= size and isinstance(model, PeftModel):
        raise ValueError(
            f"`model` needs a new embedding row for its pad token {token!r}, but an adapter does not save that row. "
            "Call `ensure_pad_token` before you wrap the model with PEFT."
        )
    processing_class.add_special_tokens({"pad_token": token})
    if token_id >= size:
        embedding = model.resize_token_embeddings(token_id + 1, mean_resizing=False)
        with torch.no_grad():
            embedding.weight[size:] = 0
    # An embedding's padding row gets no gradient. If pad was EOS, that row would be the row of EOS.
    model.get_input_embeddings().padding_idx = token_id
    model.config.get_text_config().pad_token_id = token_id


def _choose_pad_token(processing_class: PreTrainedTokenizerBase) -> str:
    """Returns the tokenizer's pad token if it has no other role, else one of the vocabulary, else a new one."""
    roles = {value for name, value in processing_class.special_tokens_map.items() if name != "pad_token"}
    template = processing_class.chat_template or ""
    vocabulary = processing_class.get_vocab()
    for token in (processing_class.pad_token, *(token for token in PAD_TOKENS if token in vocabulary)):
        if token is not None and token not in roles and token not in str(template):
            return token
    return PAD_TOKENS[0]
