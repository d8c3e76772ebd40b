import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.ppo_runs import ppo_trainer, weights
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer


def test_the_kl_starts_at_zero_and_the_reference_stays(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.train()
    kl = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and abs(kl[-1]) > 1e-4


def test_an_adapter_trains_with_the_policy_without_it_as_the_reference(tmp_path):
    peft_config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = ppo_trainer(tmp_path, peft_config=peft_config)
    assert trainer.ref_model is None
    before = weights(trainer.model)
    trainer.train()
    changed = {
        name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed and all("lora" in name for name in changed)
    kl = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] != pytest.approx(0, abs=1e-6)


def test_the_named_adapter_is_trained_against_the_named_reference(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_lm(tiny_tokenizer()), config, adapter_name="one")
    model.add_adapter("two", config)
    before = weights(model)
    with pytest.raises(ValueError, match="`ref_model` and `ref_adapter_name`='one' both define the reference policy"):
        ppo_trainer(tmp_path, model=model, ref_model=tiny_causal_lm(tiny_tokenizer()), ref_adapter_name="one")
    trainer = ppo_trainer(tmp_path, model=model, model_adapter_name="two", ref_adapter_name="one")
    trainer.train()
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed and all(".two." in name for name in changed)
