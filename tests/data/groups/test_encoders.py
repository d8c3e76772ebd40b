import gc
import weakref

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaV2Config,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from tests.tiny_models import save, tiny_nli, tiny_tokenizer
from trl_rlp.data.groups import encoders
from trl_rlp.data.groups.encoders import Encoder, choose_tokens_per_batch, get_context_length
from trl_rlp.storage.fingerprints import weights_fingerprint


SIZES = {
    "vocab_size": 300,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
DTYPES = ("float32", "bfloat16")


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
    encoder = Encoder(AutoModelForSequenceClassification, folder, None)
    assert encoder.model.device.type != "cpu" or encoder.model.dtype == torch.float32
    assert encoder.processing_class.get_vocab() == tokenizer.get_vocab()


FAMILIES = {
    "bert": BertConfig(**SIZES, num_labels=3),
    "deberta": DebertaConfig(**SIZES, num_labels=3, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": DebertaV2Config(**SIZES, num_labels=3, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "roberta": RobertaConfig(**SIZES, num_labels=3, pad_token_id=1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_computes_fp32_logits_that_are_close_to_those_of_fp32(family, tmp_path):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    folder = save(AutoModelForSequenceClassification.from_config(FAMILIES[family]), tokenizer, tmp_path)
    ids = torch.randint(5, 200, (4, 12))
    exact, rounded = (
        Encoder(AutoModelForSequenceClassification, folder, None, dtype).model.eval() for dtype in DTYPES
    )
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert all(
        torch.equal(rounded.classifier.state_dict()[name], w) for name, w in exact.classifier.state_dict().items()
    )
    logits = rounded(ids).logits
    assert logits.dtype == torch.float32 and torch.allclose(logits, exact(ids).logits, atol=2e-3)


def test_the_default_is_bf16_on_an_accelerator_and_fp32_on_a_cpu(tmp_path, monkeypatch):
    folder = save(tiny_nli(tiny_tokenizer()), tiny_tokenizer(), tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert Encoder(AutoModel, folder, None).model.dtype == torch.float32
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(encoders, "choose_dtype", lambda device: "bfloat16" if device.type == "meta" else "auto")
    assert Encoder(AutoModel, folder, None).model.dtype == torch.bfloat16
    assert Encoder(AutoModel, folder, None, "float32").model.dtype == torch.float32


def test_an_unknown_dtype_raises_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="`dtype` must be one of .*, got 'fp8'"):
        Encoder(AutoModel, "no-such/encoder", None, "fp8")


def test_a_loaded_model_is_not_changed():
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer).to(torch.bfloat16).train()
    encoder = Encoder(AutoModelForSequenceClassification, model, tokenizer)
    encoder.release()
    assert encoder.model is model and encoder.processing_class is tokenizer and encoder.config is model.config
    assert model.dtype == torch.bfloat16 and model.training
    assert choose_tokens_per_batch(encoder.device) == 512


def test_a_tokenizer_without_a_pad_token_raises():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="`processing_class` has no pad token"):
        Encoder(AutoModelForSequenceClassification, tiny_nli(tiny_tokenizer()), tokenizer)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
def test_a_missing_model_is_named_with_a_remedy(auto_class):
    match = "from 'no-such/encoder'.* another model, or .*`ExactMatch`.*`--equivalence exact`"
    with pytest.raises(OSError, match=match):
        Encoder(auto_class, "no-such/encoder", None)


def test_a_missing_tokenizer_is_named_with_a_remedy():
    model = tiny_nli(tiny_tokenizer())
    model.name_or_path = "no-such/encoder"
    with pytest.raises(OSError, match="from 'no-such/encoder'. Pass its tokenizer as `processing_class`"):
        Encoder(AutoModelForSequenceClassification, model, None)


@pytest.mark.parametrize("is_padded", [False, True])
def test_the_weights_of_a_named_model_are_in_memory_only_while_they_are_needed(tmp_path, is_padded):
    """Config, tokenizer and limits are read before. The fingerprint is that of the loaded weights."""
    tokenizer = tiny_tokenizer()
    family = RobertaConfig(**SIZES, max_position_embeddings=34, pad_token_id=1) if is_padded else FAMILIES["bert"]
    folder = save(AutoModelForSequenceClassification.from_config(family), tokenizer, tmp_path)
    gc.collect()
    encoder = Encoder(AutoModelForSequenceClassification, folder, None)
    assert count_weights(encoder) == 0
    fingerprint = encoder.fingerprint
    assert count_weights(encoder) == 0
    model = weakref.ref(encoder.model)
    assert encoder.model is model() and fingerprint == weights_fingerprint(encoder.model)
    assert encoder.context_length == get_context_length(encoder.model, tokenizer)
    assert encoder.config.to_dict() == encoder.model.config.to_dict() and encoder.device == encoder.model.device
    encoder.release()
    gc.collect()
    assert model() is None and encoder.fingerprint == fingerprint
    assert weights_fingerprint(encoder.model) == fingerprint


def count_weights(encoder: Encoder) -> int:
    """Counts the models with weights that the garbage collector knows and that have the encoder's folder."""
    gc.collect()
    models = [entry for entry in gc.get_objects() if isinstance(entry, PreTrainedModel)]
    path = encoder.processing_class.name_or_path
    return sum(model.name_or_path == path and model.device.type != "meta" for model in models)
