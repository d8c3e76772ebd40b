"""Two processes, as `torchrun` starts them. `accelerate launch --cpu` would run only one."""

from pathlib import Path

import pytest
import torch

from tests.programs import require_agreement, run_torchrun
from tests.trainer.two_process_fsdp import untied_trainer
from tests.trainer.two_process_ppo import logged, run, weights
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


HERE = Path(__file__).parent
COMPARED = ("loss", "grad_norm", "kl_coef", "objective/kl", "objective/scores", "objective/rlhf_reward")
"""Metrics that do not depend on how a step is split into micro-batches."""


def require_same_steps(one: PPOTrainer, saved: Path, tolerance: float) -> None:
    """Compares the logs and the final weights of one process with those that two processes have saved."""
    two = torch.load(saved, weights_only=True)
    rollouts = list(zip(logged(one)[:-1], two["log"][:-1], strict=True))
    assert len(rollouts) == 3
    for row, other in rollouts:
        for name in COMPARED:
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=tolerance), name
    for mine, theirs in zip(weights(one), two["weights"], strict=True):
        assert torch.allclose(mine, theirs, atol=tolerance)


def test_two_processes_refine_one_model(tmp_path):
    """With `torchrun`, so each process has its own order of sets."""
    result = run_torchrun(HERE / "two_process_run.py", tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("both processes agree") == 2


@pytest.mark.parametrize("words", [[], ["replicated"]], ids=["wrapped critic", "replicated critic"])
def test_two_processes_take_the_same_steps_as_one(tmp_path, words):
    """Whitening, running statistics and the normalization by tokens are global, so losses and weights are the same."""
    require_agreement(HERE / "two_process_ppo.py", tmp_path, *words)
    require_same_steps(run(tmp_path / "one", processes=1), tmp_path / "two.pt", tolerance=1e-6)


def test_fsdp_takes_the_same_steps_as_one_process(tmp_path):
    require_agreement(HERE / "two_process_fsdp.py", tmp_path)
    one = untied_trainer(tmp_path / "one", 1, standardize_rewards=True)
    one.train()
    require_same_steps(one, tmp_path / "two.pt", tolerance=1e-5)


@pytest.mark.parametrize("words", [[], ["adapter"]], ids=["whole model", "adapter"])
def test_a_critic_that_two_processes_shard_is_saved_in_full(tmp_path, words):
    require_agreement(HERE / "two_process_critic.py", tmp_path, *words)
