import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from tests.reward_runs import SETTINGS, policy_samples, preferences
from trl_rlp.stages.reward_model import build_reward_trainer, train_reward_model
from trl_rlp.storage.artifacts import load_policy
from trl_rlp.trainer.reward.initial_model import init_reward_model
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


def load_weights(folder) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def test_the_trainer_starts_from_the_sft_model_with_the_head_of_the_seed(tmp_path, sft_model):
    config = RLPRewardConfig(str(tmp_path), method="none", **SETTINGS, seed=5)
    trainer = build_reward_trainer(sft_model, config, preferences(), eval_dataset=preferences(3))
    expected = init_reward_model(sft_model, seed=5)[0].state_dict()
    assert all(weight.equal(expected[name]) for name, weight in trainer.model.state_dict().items())
    policy = load_policy(sft_model)[0]
    assert trainer.model.model.embed_tokens.weight.equal(policy.model.embed_tokens.weight)
    assert trainer.processing_class.pad_token == "<pad>" and trainer.model.config.pad_token_id == 0
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (8, 3)


def test_the_options_of_the_model_are_used_once(tmp_path, sft_model):
    """TRL refuses `model_init_kwargs` for a loaded model."""
    config = RLPRewardConfig(str(tmp_path), method="none", **SETTINGS, model_init_kwargs={"dtype": "bfloat16"})
    trainer = build_reward_trainer(sft_model, config, preferences())
    assert trainer.model.dtype == torch.bfloat16 and trainer.args.model_init_kwargs is None


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")])
def test_the_stage_saves_a_plain_classifier_and_returns_metrics(tmp_path, sft_model, peft_config):
    metrics = train_reward_model(tmp_path, sft_model, preferences(), {**SETTINGS, "method": "none"}, peft_config)
    assert not (tmp_path / "adapter_config.json").exists()
    weights, initial = load_weights(tmp_path), init_reward_model(sft_model, seed=42)[0].state_dict()
    changed = {name for name, weight in weights.items() if not weight.equal(initial[name])}
    assert set(weights) == set(initial)
    assert "score.weight" in changed and any("q_proj" in name for name in changed)
    assert ("model.embed_tokens.weight" in changed) == (peft_config is None)
    assert {"loss", "accuracy", "margin", "train_loss"} <= set(metrics)


def test_an_interrupted_call_resumes_from_the_last_checkpoint(tmp_path, sft_model, monkeypatch):
    """Four steps, each with a checkpoint. The first call is interrupted in the third step."""
    args = {**SETTINGS, "method": "uml", "save_strategy": "steps", "save_steps": 1}
    arguments = {"preference_dataset": preferences(), "args": args, "policy_samples": policy_samples()}
    expected = train_reward_model(tmp_path / "uninterrupted", sft_model, **arguments)
    calls = []
    compute_loss = RLPRewardTrainer.compute_loss

    def interrupted(self, *batch, **kwargs):
        calls.append(self.state.global_step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute_loss(self, *batch, **kwargs)

    monkeypatch.setattr(RLPRewardTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(tmp_path / "run", sft_model, **arguments)
    metrics = train_reward_model(tmp_path / "run", sft_model, **arguments)
    assert calls == [0, 1, 2, 2, 3]
    assert (metrics["loss"], metrics["mi"]) == (expected["loss"], expected["mi"])
    weights, uninterrupted = load_weights(tmp_path / "run"), load_weights(tmp_path / "uninterrupted")
    assert all(weight.equal(uninterrupted[name]) for name, weight in weights.items())
