import logging

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MiniMaxConfig,
    MistralConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

import trl_rlp.data.sampling.shared_prefill as shared_prefill
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling.shared_prefill import generate_samples


needs_described_cache = pytest.mark.skipif(
    not hasattr(DynamicCache, "is_linear"), reason="transformers 5.0 does not describe the layers of a cache"
)

PROMPTS = [[7, 8], [5, 9, 23, 11, 40, 31, 6, 12, 13, 29, 50], [33, 34, 35, 36, 37]]
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
LINEAR = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
SHARING = {
    "llama": LlamaConfig(**SMALL),
    "sliding": MistralConfig(**SMALL, sliding_window=4),
    "absolute": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=1),
    "linear": Qwen3NextConfig(**SMALL, **LINEAR),
    "convolution": Lfm2Config(**SMALL, layer_types=["conv", "full_attention"] * 2),
}
NOT_SHARING = {
    "own cache": MiniMaxConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
    "recurrent": RecurrentGemmaConfig(**SMALL, lru_width=32, head_dim=8, attention_window_size=8),
}
# Mamba's states are in the cache since transformers 5.24.
EITHER = {"mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=1)}


def build_config(**overrides):
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12}
    return GenerationConfig(**{**settings, "eos_token_id": [1], "pad_token_id": 0, **overrides})


def build_model(config, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def sample_plainly(model, prompt_ids, n, config):
    """Samples with plain `generate`: left padding, n copies of each prompt, new tokens only."""
    length = max(len(row) for row in prompt_ids)
    input_ids = torch.tensor([[0] * (length - len(row)) + row for row in prompt_ids])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompt_ids])
    sequences = model.generate(
        input_ids=input_ids, attention_mask=mask, generation_config=config, num_return_sequences=n
    )
    return sequences[:, length:].view(len(prompt_ids), n, -1)


def count_tokens(model, run):
    """Counts the tokens that the embedding reads during `run()`."""
    counts = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, _: counts.append(inputs[0].numel())
    )
    run()
    hook.remove()
    return sum(counts)


@pytest.mark.parametrize("family", [*SHARING, *NOT_SHARING, *EITHER])
@pytest.mark.parametrize("top_k", [1, 0], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "prompt_ids", [PROMPTS, [[5, 6, 7], [8, 9, 10]], [[5], [6, 7, 8]]], ids=["mixed", "equal", "one"]
)
def test_samples_equal_plain_generate_with_the_same_seed(family, top_k, prompt_ids):
    model = build_model({**SHARING, **NOT_SHARING, **EITHER}[family])
    torch.manual_seed(3)
    expected = sample_plainly(model, prompt_ids, 4, build_config(top_k=top_k))
    torch.manual_seed(3)
    samples = generate_samples(model, prompt_ids, 4, build_config(top_k=top_k))
    assert samples.shape[:2] == (len(prompt_ids), 4)
    assert torch.equal(samples, expected)


@needs_described_cache
def test_each_prompt_is_read_once():
    """
    Three prompts are padded to 11 tokens, n = 4, and there are two new tokens. Plain: 12 x 11 tokens are read, and 12
    more for the second new token, 144 in total. Shared: 3 x 10 tokens are read, and 12 for each of the two new tokens,
    54 in total.
    """
    model = build_model(SHARING["llama"])
    config = build_config(max_new_tokens=2, eos_token_id=None)
    assert count_tokens(model, lambda: generate_samples(model, PROMPTS, 4, config, share_prefill=False)) == 144
    assert count_tokens(model, lambda: generate_samples(model, PROMPTS, 4, config)) == 54


@needs_described_cache
def test_a_cache_that_does_not_name_layers_without_a_state_is_shared(monkeypatch):
    """`is_dummy` is newer than transformers 5.17. 54 tokens are read, as in the test above."""
    monkeypatch.setattr(shared_prefill, "hasattr", lambda value, name: name != "is_dummy", raising=False)
    model = build_model(SHARING["llama"])
    config = build_config(max_new_tokens=2, eos_token_id=None)
    assert count_tokens(model, lambda: generate_samples(model, PROMPTS, 4, config)) == 54


@pytest.mark.parametrize("family", NOT_SHARING)
def test_models_with_states_outside_the_cache_use_plain_generate_and_log_it(family, caplog):
    with caplog.at_level(logging.INFO, logger="trl_rlp"):
        generate_samples(build_model(NOT_SHARING[family]), PROMPTS, 2, build_config())
    assert "without sharing the prefill" in caplog.text


def test_first_tokens_follow_the_softmax_of_all_logits_over_the_temperature():
    """
    Compares 20,000 draws with the exact distribution over a vocabulary of 64 tokens. The total variation distance is
    about 0.02 by chance. If the model's own top-k of 50 or temperature of 1 had an effect, it would be at least 0.1.
    """
    torch.manual_seed(0)
    model = build_model(SHARING["llama"])
    model.lm_head.weight.data.mul_(8)
    model.generation_config = GenerationConfig(top_k=50, top_p=0.5, repetition_penalty=3.0, min_new_tokens=5)
    with torch.no_grad():
        expected = (model(torch.tensor([PROMPTS[1]])).logits[0, -1] / 2.0).softmax(-1)
    tokens = generate_samples(model, [PROMPTS[1]], 20_000, build_config(temperature=2.0, max_new_tokens=1)).flatten()
    observed = torch.bincount(tokens, minlength=64) / 20_000
    assert (observed - expected).abs().sum() / 2 < 0.04
    assert expected.topk(14, largest=False).values.sum() > 0.04  # so the test would detect top-k 50


def test_the_models_generation_config_is_restored_even_after_an_error():
    model = build_model(SHARING["llama"])
    config = GenerationConfig(top_k=1)
    model.generation_config = config
    generate_samples(model, PROMPTS, 2, build_config())
    assert model.generation_config is config
    with pytest.raises(Exception, match="max_new_tokens"):
        generate_samples(model, PROMPTS, 2, build_config(max_new_tokens=-1))
    assert model.generation_config is config


@pytest.mark.parametrize("settings_on", ["adapter", "base"])
def test_generation_settings_of_a_peft_model_and_of_its_base_have_no_effect(settings_on):
    base = tiny_causal_lm(tiny_tokenizer())
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)).eval()
    torch.manual_seed(1)
    expected = sample_plainly(model, PROMPTS, 3, build_config())
    (model if settings_on == "adapter" else base).generation_config = GenerationConfig(top_k=1, repetition_penalty=9.0)
    torch.manual_seed(1)
    assert torch.equal(generate_samples(model, PROMPTS, 3, build_config()), expected)
    assert model.generation_config.top_k == 1
    with model.disable_adapter():
        torch.manual_seed(1)
        assert not torch.equal(generate_samples(model, PROMPTS, 3, build_config()), expected)


def test_virtual_tokens_of_prompt_tuning_are_kept():
    model = get_peft_model(
        tiny_causal_lm(tiny_tokenizer()), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    torch.manual_seed(1)
    expected = sample_plainly(model, PROMPTS, 3, build_config())
    torch.manual_seed(1)
    assert torch.equal(generate_samples(model, PROMPTS, 3, build_config()), expected)
