import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.storage.fingerprints import tokenizer_fingerprint, value_fingerprint, weights_fingerprint


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_equal_weights_have_equal_fingerprints_whatever_the_object(tokenizer):
    assert weights_fingerprint(tiny_causal_lm(tokenizer)) == weights_fingerprint(tiny_causal_lm(tokenizer))
    assert len(weights_fingerprint(tiny_causal_lm(tokenizer))) == 32


def test_one_bit_of_one_weight_changes_it(tokenizer):
    model = tiny_causal_lm(tokenizer)
    before = weights_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight.view(torch.int32)[0, 0] ^= 1
    assert weights_fingerprint(model) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_differs(tokenizer, dtype):
    model = tiny_causal_lm(tokenizer)
    assert weights_fingerprint(copy.deepcopy(model).to(dtype)) != weights_fingerprint(model)


def test_a_disabled_or_merged_adapter_is_another_policy(tokenizer):
    model = get_peft_model(tiny_causal_lm(tokenizer), LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    enabled = weights_fingerprint(model)
    with model.disable_adapter():
        disabled = weights_fingerprint(model)
    assert enabled != disabled
    assert weights_fingerprint(model) == enabled


def test_tokenizers_differ_by_vocabulary_and_by_chat_template(tokenizer):
    other_template = tiny_tokenizer()
    other_template.chat_template = "{{ messages }}"
    fingerprints = {
        tokenizer_fingerprint(each)
        for each in (tokenizer, tiny_tokenizer(offset=1), tiny_tokenizer(chat=False), other_template)
    }
    assert len(fingerprints) == 4
    assert tokenizer_fingerprint(tiny_tokenizer()) == tokenizer_fingerprint(tokenizer)


def test_values_differ_by_content_and_by_the_order_of_lists():
    assert value_fingerprint(["a", "b"]) == value_fingerprint(["a", "b"]) != value_fingerprint(["b", "a"])
    assert value_fingerprint(["ab"]) != value_fingerprint(["a", "b"])
    assert value_fingerprint({"role": "user", "content": "é"}) == value_fingerprint({"content": "é", "role": "user"})
