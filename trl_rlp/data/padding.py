"""A pad token of the reward model's own, so that the token which ends a text is not taken for padding."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Names under which tokenizers ship a token that is meant for padding and for nothing else.
PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")


def ensure_pad_token(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> None:
    """
    Gives a reward model and its tokenizer a pad token that no text contains, so that EOS reaches the score.

    A score is read at the last token that is not padding. Where pad equals EOS, as TRL sets it for tokenizers without
    a pad token, that is the token before EOS. A pad token of the tokenizer's own is kept, else one of `PAD_TOKENS` in
    its vocabulary taken, else `<|pad|>` added, with a row of zeros in the embedding; other rows stay as they are. Both
    arguments change in place. Call it before the reward model is trained.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model whose `config.pad_token_id` is set. Not yet wrapped by PEFT if its embedding must grow.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer whose `pad_token` is set. Save it with the model.

    Raises:
        ValueError: if the embedding of a PEFT model would have to grow.
    """
    token = _free_pad_token(processing_class)
    vocabulary = processing_class.get_vocab()
    token_id = vocabulary[token] if token in vocabulary else len(processing_class)
    size = model.get_input_embeddings().weight.shape[0]
    if token_id >= size and isinstance(model, PeftModel):
        raise ValueError(
            f"`model` needs a new embedding row for its pad token {token!r}, which an adapter does not save. Call "
            "`ensure_pad_token` before PEFT wraps the model."
        )
    processing_class.add_special_tokens({"pad_token": token})
    if token_id >= size:
        embedding = model.resize_token_embeddings(token_id + 1, mean_resizing=False)
        with torch.no_grad():
            embedding.weight[size:] = 0
    # An embedding gives its padding row no gradient; where pad was EOS that row would be the one of EOS.
    model.get_input_embeddings().padding_idx = token_id
    model.config.get_text_config().pad_token_id = token_id


def _free_pad_token(processing_class: PreTrainedTokenizerBase) -> str:
    """The tokenizer's pad token if it has no other role, else one made for padding, else the one to add."""
    roles = {value for name, value in processing_class.special_tokens_map.items() if name != "pad_token"}
    template = processing_class.chat_template or ""
    vocabulary = processing_class.get_vocab()
    for token in (processing_class.pad_token, *(token for token in PAD_TOKENS if token in vocabulary)):
        if token is not None and token not in roles and token not in str(template):
            return token
    return PAD_TOKENS[0]
