import torch
from peft import LoraConfig

from tests.ppo_runs import ppo_trainer, weights


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
