"""Conversion from rollouts to optimizer steps."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from tests.ppo_runs import ppo_config, ppo_trainer, prompts
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer
from trl_rlp.trainer.ppo.rollout_steps import RolloutScheduler, require_rollout


def build_scheduler() -> RolloutScheduler:
    """Builds a schedule with 3 steps per rollout. The rate of rollout i, counted from 0, is 1 / (1 + i)."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    optimizer.step()
    return RolloutScheduler(LambdaLR(optimizer, lambda rollout: 1 / (1 + rollout)), 3)


def take_steps(scheduler: RolloutScheduler, steps: int) -> list[float]:
    """Takes steps and returns the learning rate of each."""
    rates = []
    for _ in range(steps):
        rates += scheduler.get_last_lr()
        scheduler.step()
    return rates


def test_learning_rate_changes_once_per_rollout():
    assert take_steps(build_scheduler(), 7) == [1.0] * 3 + [1 / 2] * 3 + [1 / 3]


def test_restored_schedule_continues():
    first = build_scheduler()
    take_steps(first, 4)
    second = build_scheduler()
    second.load_state_dict(first.state_dict())
    assert take_steps(second, 3) == take_steps(first, 3) == [1 / 2] * 2 + [1 / 3]
    assert second.base_lrs == [1.0]


def test_number_of_rollouts_follows_from_the_length_of_the_run(tmp_path):
    assert ppo_trainer(tmp_path, total_episodes=9).args.num_total_batches == 3
    assert ppo_trainer(tmp_path, total_episodes=None, num_train_epochs=2).args.num_total_batches == 4
    assert ppo_trainer(tmp_path, total_episodes=None, max_steps=5).args.num_total_batches == 5


@pytest.mark.parametrize("epochs, rollouts", [(0.1, 1), (0.6, 1), (1.3, 3), (0, 0)])
def test_a_part_of_an_epoch_is_at_least_one_rollout(tmp_path, epochs, rollouts):
    """8 prompts in rollouts of 4, with 2 steps each. The rate of a linear schedule starts at its full value."""
    trainer = ppo_trainer(tmp_path, total_episodes=None, num_train_epochs=epochs, logging_steps=0.5)
    trainer.train()
    assert trainer.args.num_total_batches == rollouts
    assert trainer.state.global_step == 2 * rollouts
    rates = [row["lr"] for row in trainer.state.log_history if "lr" in row]
    assert rates[:1] == ([] if rollouts == 0 else [0.01 if rollouts == 1 else pytest.approx(0.01 * 2 / 3)])


def test_counts_of_rollouts_become_optimizer_steps(tmp_path):
    settings = {"eval_dataset": prompts(2), "eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2}
    trainer = ppo_trainer(tmp_path, logging_steps=3, save_steps=4, **settings)
    args = trainer.args
    assert (args.logging_steps, args.save_steps, args.eval_steps, args.eval_delay) == (6, 8, 2, 4)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == [4, 6]


def test_missing_prompts_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is None. Pass prompts"):
        PPOTrainer(
            ppo_config(tmp_path),
            tiny_tokenizer(),
            tiny_causal_lm(tiny_tokenizer()),
            reward_model=tiny_reward_model(tiny_tokenizer()),
        )


def test_a_rollout_needs_its_number_of_prompts(tmp_path):
    args = ppo_config(tmp_path)
    needed = args.generation_batch_size // args.num_generations
    require_rollout(args, needed)
    with pytest.raises(ValueError, match=f"`prompts` has {needed - 1} prompts, but a rollout needs {needed}"):
        require_rollout(args, needed - 1, "prompts")
