import types

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedConfig

import trl_rlp.data.sampling.token_budget as token_budget
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling.token_budget import choose_tokens_per_batch, estimate_token_bytes


def test_the_bytes_of_a_token_are_those_of_its_keys_values_and_logits():
    """
    Llama: 2 layers of 2 key-value heads of 4 numbers in fp32 are 2 * 2 * 2 * 4 * 4 = 128 bytes of keys and values. The
    logits take 32 * 261 bytes for the 1 + 9 tokens of a sequence.
    """
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(
        tokenizer, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=16, head_dim=4
    )
    assert estimate_token_bytes(model, 9) == 128 + 32 * model.config.vocab_size / 10
    assert estimate_token_bytes(model.to(torch.bfloat16), 9) == 64 + 32 * model.config.vocab_size / 10


def test_configs_with_other_names_are_read():
    """GPT-2: 3 layers of 2 heads of 4 numbers, keys and values, in fp32."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=3, n_head=2))
    assert estimate_token_bytes(model, 1) == 2 * 3 * 2 * 4 * 4 + 32 * 10 / 2


@pytest.mark.skipif(not hasattr(PreTrainedConfig, "is_heterogeneous"), reason="this transformers has no such models")
def test_layers_with_heads_of_their_own_are_read_one_by_one():
    """As in Gemma 4: one layer of 2 heads of 8 numbers, and one of 1 head of 16, in fp32."""
    per_layer = {1: {"num_key_value_heads": 1, "head_dim": 16}}
    config = LlamaConfig(
        vocab_size=10, num_hidden_layers=2, num_key_value_heads=2, head_dim=8, per_layer_config=per_layer
    )
    fake = types.SimpleNamespace(config=config, dtype=torch.float32)
    assert estimate_token_bytes(fake, 1) == 2 * (2 * 8 + 1 * 16) * 4 + 32 * 10 / 2


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_that_does_not_tell_its_free_memory_has_8192_tokens(device):
    model = tiny_causal_lm(tiny_tokenizer())
    fake = types.SimpleNamespace(device=torch.device(device), config=model.config, dtype=torch.float32)
    assert choose_tokens_per_batch(fake, 256) == 8192


def test_the_budget_follows_the_free_memory_of_a_gpu(monkeypatch):
    """10,000,000 bytes are free, and PyTorch's cache holds 2,000,000 more. 0.6 of them are for the batch."""
    memory = types.SimpleNamespace(
        mem_get_info=lambda device: (10_000_000, 80_000_000),
        memory_reserved=lambda device: 5_000_000,
        memory_allocated=lambda device: 3_000_000,
    )
    model = tiny_causal_lm(tiny_tokenizer())
    monkeypatch.setattr(token_budget.torch, "cuda", memory)
    fake = types.SimpleNamespace(device=torch.device("cuda"), config=model.config, dtype=torch.float32)
    assert choose_tokens_per_batch(fake, 255) == int(0.6 * 12_000_000 / estimate_token_bytes(model, 255))
