"""Rollouts and optimizer steps with numbers that are not finite."""

import pytest
import torch
from transformers import TrainerCallback

from tests.ppo_runs import has_changed, ppo_trainer, weights
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


def test_rollout_that_is_not_finite_is_skipped_and_counted(tmp_path):
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [float("nan") if len(calls) == 2 else 1.0] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], normalize_rewards=True)
    trainer.train()
    assert [row["skipped_steps"] for row in trainer.state.log_history if "skipped_steps" in row] == [0, 2, 2]
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_bad_rollout_has_no_gradient_where_the_engine_steps_without_the_guard(tmp_path, monkeypatch):
    """As under DeepSpeed, whose engine clips and steps in `backward`. With a NaN, the policy would be lost."""
    calls, gradients = [], []

    def reward(completions, **kwargs):
        calls.append(1)
        return [float("nan") if len(calls) == 2 else 1.0] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward])
    monkeypatch.setattr(PPOTrainer, "_steps_without_guard", True)
    step = trainer._guard.check_step

    def record(modules):
        gradients.append([p.grad.abs().sum().item() for p in trainer.model.parameters() if p.grad is not None])
        return step(modules)

    trainer._guard.check_step = record
    trainer.train()
    assert len(gradients) == 6 and all(gradients)
    assert [any(step) for step in gradients] == [True, True, False, False, True, True]


def test_three_bad_rollouts_in_a_row_stop_the_run_and_the_error_names_the_last_good_checkpoint(tmp_path):
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [1.0 if len(calls) == 1 else float("inf")] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], save_strategy="steps", save_steps=1, total_episodes=40)
    with pytest.raises(RuntimeError, match=r"3 times in a row a rollout's scores.* not finite.*checkpoint-2\)"):
        trainer.train()


def test_second_call_of_train_also_stops_after_three_bad_rollouts(tmp_path):
    def reward(completions, **kwargs):
        return [float("nan")] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], total_episodes=40)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="3 times in a row"):
            trainer.train()
        assert trainer.state.global_step < 8


def test_loss_that_is_not_finite_changes_no_weights(tmp_path):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: compute_loss(*args, **kwargs) * float("nan")
    trainer.train()
    assert not has_changed(trainer.model, policy) and not has_changed(trainer.value_model, critic)


@pytest.mark.parametrize("side", ["model", "value_model"])
def test_one_infinite_element_of_a_gradient_changes_no_weights(tmp_path, side):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    norm = next(p for name, p in getattr(trainer, side).named_parameters() if name.endswith("norm.weight"))
    norm.register_hook(lambda grad: grad.index_fill(0, torch.tensor([2]), torch.inf))
    trainer.train()
    assert not has_changed(trainer.model, policy) and not has_changed(trainer.value_model, critic)
    assert trainer.state.log_history[0]["skipped_steps"] == 2


class Spoiler(TrainerCallback):
    """Writes NaN into a gradient of the policy, just before the second optimizer step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 1:
            next(parameter for parameter in model.parameters() if parameter.grad is not None).grad[0] = torch.nan


def test_guard_checks_what_callbacks_left_that_were_added_later(tmp_path):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    trainer.add_callback(Spoiler())
    trainer.train()
    assert trainer.state.log_history[0]["skipped_steps"] == 1
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
