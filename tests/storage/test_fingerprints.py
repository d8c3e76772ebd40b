import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.storage.fingerprints import tokenizer_fingerprint, value_fingerprint, weights_fingerprint


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_models_with_equal_weights_have_equal_fingerprints(tokenizer):
    assert weights_fingerprint(tiny_causal_lm(tokenizer)) == weights_fingerprint(tiny_causal_lm(tokenizer))
    assert len(weights_fingerprint(tiny_causal_lm(tokenizer))) == 32


def test_one_bit_of_one_weight_changes_the_fingerprint(tokenizer):
    model = tiny_causal_lm(tokenizer)
    before = weights_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight.view(torch.int32)[0, 0] ^= 1
    assert weights_fingerprint(model) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_the_fingerprint(tokenizer, dtype):
    model = tiny_causal_lm(tokenizer)
    assert weights_fingerprint(copy.deepcopy(model).to(dtype)) != weights_fingerprint(model)


def test_a_disabled_adapter_changes_the_fingerprint(tokenizer):
    model = get_peft_model(tiny_causal_lm(tokenizer), LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    enabled = weights_fingerprint(model)
    with model.disable_adapter():
        disabled = weights_fingerprint(model)
    assert enabled != disabled
    assert weights_fingerprint(model) == enabled


def test_the_vocabulary_and_the_chat_template_change_the_fingerprint(tokenizer):
    other_template = tiny_tokenizer()
    other_template.chat_template = "{{ messages }}"
    others = (tiny_tokenizer(offset=1), tiny_tokenizer(chat=False), other_template)
    fingerprints = {tokenizer_fingerprint(other) for other in (tokenizer, *others)}
    assert len(fingerprints) == 4
    assert tokenizer_fingerprint(tiny_tokenizer()) == tokenizer_fingerprint(tokenizer)


def test_the_content_and_the_order_of_lists_change_the_fingerprint():
    assert value_fingerprint(["a", "b"]) == value_fingerprint(["a", "b"]) != value_fingerprint(["b", "a"])
    assert value_fingerprint(["ab"]) != value_fingerprint(["a", "b"])
    assert value_fingerprint({"role": "user", "content": "é"}) == value_fingerprint({"content": "é", "role": "user"})
