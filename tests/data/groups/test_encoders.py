import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
)

from tests.tiny_models import save, tiny_nli, tiny_tokenizer
from trl_rlp.data.groups.encoders import choose_tokens_per_batch, get_context_length, load_encoder


SIZES = {
    "vocab_size": 300,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


@pytest.mark.parametrize(
    ("model", "tokenizer_limit", "expected"),
    [
        (BertModel(BertConfig(**SIZES, max_position_embeddings=64)), 512, 64),
        (BertModel(BertConfig(**SIZES, max_position_embeddings=64)), 32, 32),
        # RoBERTa's first position comes after its padding index of 1, so 514 rows hold 512 tokens.
        (RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=514, pad_token_id=1)), 10**30, 512),
        (LlamaModel(LlamaConfig(**SIZES, max_position_embeddings=128, pad_token_id=0)), 10**30, 128),
    ],
    ids=["bert", "tokenizer", "roberta", "rotary"],
)
def test_the_context_is_the_smaller_limit_of_model_and_tokenizer(model, tokenizer_limit, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = tokenizer_limit
    assert get_context_length(model, tokenizer) == expected


def test_a_named_model_is_loaded_with_its_tokenizer_and_in_fp32_on_a_cpu(tmp_path):
    tokenizer = tiny_tokenizer()
    folder = save(tiny_nli(tokenizer).half(), tokenizer, tmp_path)
    model, loaded = load_encoder(AutoModelForSequenceClassification, folder, None)
    assert model.device.type != "cpu" or model.dtype == torch.float32
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_a_loaded_model_is_not_changed():
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer).to(torch.bfloat16).train()
    assert load_encoder(AutoModelForSequenceClassification, model, tokenizer) == (model, tokenizer)
    assert model.dtype == torch.bfloat16 and model.training
    assert choose_tokens_per_batch(model) == 512


def test_a_tokenizer_without_a_pad_token_raises():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="`processing_class` has no pad token"):
        load_encoder(AutoModelForSequenceClassification, tiny_nli(tiny_tokenizer()), tokenizer)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
def test_a_missing_model_is_named_with_a_remedy(auto_class):
    match = "from 'no-such/encoder'.* another model, or .*`ExactMatch`.*`--equivalence exact`"
    with pytest.raises(OSError, match=match):
        load_encoder(auto_class, "no-such/encoder", None)


def test_a_missing_tokenizer_is_named_with_a_remedy():
    model = tiny_nli(tiny_tokenizer())
    model.name_or_path = "no-such/encoder"
    with pytest.raises(OSError, match="from 'no-such/encoder'. Pass its tokenizer as `processing_class`"):
        load_encoder(AutoModelForSequenceClassification, model, None)
