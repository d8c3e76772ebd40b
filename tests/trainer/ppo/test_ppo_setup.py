import pytest
import torch
from peft import LoraConfig

from tests.ppo_runs import ppo_trainer, weights
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer


def test_the_critic_may_be_an_adapter(tmp_path):
    trainer = ppo_trainer(tmp_path, value_peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    before = weights(trainer.value_model)
    trainer.train()
    after = weights(trainer.value_model)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert any("lora" in name for name in changed) and any("score" in name for name in changed)
    assert all("lora" in name or "modules_to_save" in name for name in changed)


def test_another_collator_is_warned_of(tmp_path, caplog):
    ppo_trainer(tmp_path, data_collator=lambda rows: rows)
    assert "`data_collator` (`function`) is not used" in caplog.text


def test_the_critic_trains_with_checkpointing(tmp_path, monkeypatch):
    trainer = ppo_trainer(tmp_path, gradient_checkpointing=True)
    layer = trainer.value_model.model.layers[0]
    calls = []
    checkpoint = layer._gradient_checkpointing_func
    monkeypatch.setattr(layer, "_gradient_checkpointing_func", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    trainer.train()
    assert trainer.value_model.training and len(calls) >= 12


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_in_fp32_is_one_in_the_reference_too(tmp_path, tied):
    model = tiny_causal_lm(tiny_tokenizer(), tie_word_embeddings=tied).to(torch.bfloat16)
    trainer = ppo_trainer(tmp_path, model=model, cast_lm_head_to_fp32=True, temperature=1.0)
    trainer.train()
    first, *rest = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert first == 0 and any(rest)
    assert trainer.ref_model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_dropout_is_off_in_both_adapters(tmp_path):
    config = {"r": 2, "target_modules": ["q_proj"], "lora_dropout": 0.5}
    trainer = ppo_trainer(
        tmp_path, peft_config=LoraConfig(task_type="CAUSAL_LM", **config), value_peft_config=LoraConfig(**config)
    )
    for model in (trainer.policy_model, trainer.value_model):
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_dropout_that_layers_hold_as_a_number_is_off_too(tmp_path):
    model, reward_model = tiny_causal_lm(tiny_tokenizer()), tiny_reward_model(tiny_tokenizer(), seed=3)
    for layer in (*model.model.layers, *reward_model.model.layers):
        layer.self_attn.attention_dropout = 0.5
    trainer = ppo_trainer(tmp_path, model=model, reward_model=reward_model, learning_rate=1e-12)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["objective/kl"] == pytest.approx(0, abs=1e-6) and row["policy/approxkl_avg"] < 1e-9
    assert trainer.value_model.model.layers[0].self_attn.attention_dropout == 0.0
