"""TRL's fused LM head gives the same log-probabilities and gradients as logits, where a model allows it."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GraniteConfig, LlamaConfig
from trl.trainer import add_fused_lm_head

from tests.ppo_runs import logged, ppo_trainer
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.trainer.ppo import fused_head, token_models
from trl_rlp.trainer.ppo.fused_head import (
    build_fused_forward,
    fits_fused_head,
    fused_log_probs,
    has_plain_head,
    use_forward,
)
from trl_rlp.trainer.ppo.token_models import completion_log_probs, position_ids_from_mask


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
FAMILIES = {
    "plain": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "softcapping": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0),
    "scaled logits": GraniteConfig(**SIZES, logits_scaling=4.0),
    "absolute positions": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=1),
}
IDS = torch.tensor([[5, 6, 7, 8, 11, 12, 0], [0, 0, 9, 10, 13, 14, 15]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]])
IS_TOKEN = MASK[:, -3:].bool()
WEIGHTS = torch.tensor([[0.3, -1.2, 0.0], [0.7, 0.4, -0.9]])


def build(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family]).eval()


@pytest.mark.parametrize("cast", [False, True], ids=["", "fp32 head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_those_of_logits(family, cast):
    plain = build(family)
    fused = copy.deepcopy(plain)
    add_fused_lm_head(fused, temperature=0.7, cast_lm_head_to_fp32=cast, outputs=("log_probs", "entropy"))
    assert has_plain_head(fused) and fits_fused_head(fused, IDS, MASK)
    expected = completion_log_probs(plain, IDS, MASK, 3, temperature=0.7)
    found = fused_log_probs(fused, IDS, MASK, 3, position_ids_from_mask(MASK))
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.allclose(value[IS_TOKEN], reference[IS_TOKEN], atol=1e-5)
    assert not found[0][~IS_TOKEN].any()
    for log_probs in (expected[0], found[0]):
        (log_probs * WEIGHTS).sum().backward()
    for (name, parameter), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, atol=1e-5), name


def test_log_probs_of_a_bf16_model_are_in_fp32():
    plain = build("plain")
    exact, _ = completion_log_probs(plain, IDS, MASK, 3, temperature=1.0)
    model = plain.bfloat16()
    with use_forward(model, build_fused_forward(model, 1.0, False)):
        found, entropies = fused_log_probs(model, IDS, MASK, 3, position_ids_from_mask(MASK))
    assert entropies is None and found.dtype == torch.float32
    assert torch.allclose(found[IS_TOKEN], exact[IS_TOKEN], atol=0.1)


@pytest.mark.parametrize("target", ["lm_head", "q_proj"])
def test_an_adapter_of_the_head_needs_logits(target):
    model = get_peft_model(build("plain"), LoraConfig(target_modules=[target], task_type="CAUSAL_LM"))
    assert has_plain_head(model) == (target == "q_proj")


def test_a_trained_copy_of_the_head_and_quantized_weights_need_logits():
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    assert not has_plain_head(get_peft_model(build("plain"), config))
    model = build("plain")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(320, 1, dtype=torch.uint8), requires_grad=False)
    assert not has_plain_head(model)
    assert not has_plain_head(torch.compile(build("plain"), backend="eager"))


def test_a_head_that_fsdp_shards_by_itself_needs_logits(monkeypatch):
    """The fused head gathers such weights itself, and their gradient would be a sum over the processes, not a mean."""
    model = build("plain")
    assert has_plain_head(model)
    monkeypatch.setattr(fused_head, "FSDPModule", torch.nn.Linear)
    assert not has_plain_head(model)


def test_a_model_that_changes_its_logits_in_an_unknown_way_needs_logits():
    class Doubled(type(build("plain"))):
        def forward(self, *arguments, **options):
            outputs = super().forward(*arguments, **options)
            outputs.logits = 2 * outputs.logits
            return outputs

    assert not fits_fused_head(Doubled(FAMILIES["plain"]).eval(), IDS, MASK)


def test_the_users_model_gets_its_forward_back():
    model = build("plain")
    fused = build_fused_forward(model, 1.0, False)
    assert "forward" not in vars(model)
    with use_forward(model, fused):
        assert model.forward is fused
    assert "forward" not in vars(model)
    model.forward = model.forward
    own = model.forward
    with use_forward(model, build_fused_forward(model, 1.0, False)), use_forward(model, None):
        pass
    assert model.forward == own


RUNS = {
    "reference": {},
    "adapter": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")},
    "bf16": {"bf16": True, "cast_lm_head_to_fp32": True},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_run_with_the_fused_head_logs_the_same_numbers(tmp_path, monkeypatch, settings):
    logs = []
    for fuses in (False, True):
        monkeypatch.setattr(token_models, "prefers_fused_head", lambda device, fuses=fuses: fuses)
        model = tiny_causal_lm(tiny_tokenizer())
        trainer = ppo_trainer(tmp_path, model=model, learning_rate=1e-6, total_episodes=4, **settings)
        trainer.train()
        assert trainer._models._is_policy_fused == fuses
        assert (trainer._models._fused_reference_forward is not None) == (fuses and "peft_config" not in settings)
        logs.append(logged(trainer))
    tolerance = 2e-2 if "bf16" in settings else 1e-4
    for plain, fused in zip(*logs, strict=True):
        assert fused == {name: pytest.approx(value, rel=tolerance, abs=tolerance) for name, value in plain.items()}
    assert [row["objective/kl"] for row in logs[1] if "objective/kl" in row][0] == pytest.approx(0, abs=tolerance)
