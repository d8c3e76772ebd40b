"""With `method="none"`, our trainer equals TRL's: all logged numbers and all weights are the same, bit for bit."""

from functools import partial

import pytest
import torch
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from tests.reward_runs import SETTINGS, preferences, rlp_trainer, trl_trainer
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
EVAL_TIMES = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
VARIANTS = {
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
    "no checkpointing": {"gradient_checkpointing": False},
    "centered": {"center_rewards_coefficient": 0.1},
    "padded": {"pad_to_multiple_of": 8},
    "two epochs": {"max_steps": -1, "num_train_epochs": 2},
}


def drop_times(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMES | EVAL_TIMES} for row in history]


def assert_same_run(ours, theirs):
    assert drop_times(ours.state.log_history) == drop_times(theirs.state.log_history)
    for (name, weight), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(weight, other), name


def train_both(tmp_path, data=None, **settings) -> list[RewardTrainer]:
    runs = []
    for build in (partial(rlp_trainer, method="none"), trl_trainer):
        settings = {"eval_strategy": "steps", "eval_steps": 2, **settings}
        data = data or {}
        trainer = build(tmp_path / str(len(runs)), data=preferences(**data), eval_dataset=preferences(3), **settings)
        trainer.train()
        runs.append(trainer)
    return runs


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_step_equals_trl(tmp_path, settings):
    ours, theirs = train_both(tmp_path, **settings)
    assert len(ours.state.log_history) >= 6
    assert_same_run(ours, theirs)


@pytest.mark.parametrize("data", [{}, {"margin": True}, {"chat": True}], ids=["text", "margin", "chat"])
def test_every_format_equals_trl(tmp_path, data):
    assert_same_run(*train_both(tmp_path, data))


def test_an_adapter_equals_trl(tmp_path):
    runs = []
    for trainer_class, config_class in ((RLPRewardTrainer, RLPRewardConfig), (RewardTrainer, RewardConfig)):
        tokenizer = tiny_tokenizer()
        trainer = trainer_class(
            tiny_reward_model(tokenizer),
            config_class(str(tmp_path / trainer_class.__name__), **SETTINGS),
            train_dataset=preferences(),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        )
        trainer.train()
        runs.append(trainer)
    assert_same_run(*runs)


def test_the_preference_loss_of_uml_starts_at_trls_loss(tmp_path):
    """Views change the model only after the first update. The first step has TRL's preference loss, up to padding."""
    theirs = trl_trainer(tmp_path / "theirs", max_steps=1)
    theirs.train()
    ours = rlp_trainer(tmp_path / "ours", max_steps=1)
    ours.train()
    first = ours.state.log_history[0]
    assert first["preference_loss"] == pytest.approx(theirs.state.log_history[0]["loss"], abs=1e-6)
    assert first["loss"] == pytest.approx(first["preference_loss"] + 0.5 * first["representation_loss"], abs=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_accumulation_does_not_change_the_preference_loss(tmp_path, accumulation):
    """Two micro-batches of one pair equal one batch of two pairs, for TRL's loss and for ours."""
    settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2 // accumulation}
    theirs = trl_trainer(tmp_path / "theirs", max_steps=1, **settings)
    theirs.train()
    ours = rlp_trainer(tmp_path / "ours", max_steps=1, representation_coef=0.0, **settings)
    ours.train()
    for key in ("loss", "preference_loss"):
        assert ours.state.log_history[0][key] == pytest.approx(theirs.state.log_history[0]["loss"], abs=1e-6)
    for name, weight in ours.model.named_parameters():
        assert torch.allclose(weight, theirs.model.get_parameter(name), atol=1e-5), name
