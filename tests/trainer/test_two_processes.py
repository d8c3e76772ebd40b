"""Two processes with `torchrun`. `accelerate launch --cpu` would run only one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.two_process_fsdp import untied_trainer
from tests.trainer.two_process_ppo import logged, run, weights


HERE = Path(__file__).parent
COMPARED = ("loss", "grad_norm", "kl_coef", "objective/kl", "objective/scores", "objective/rlhf_reward")
"""Metrics that do not depend on how a step is split into micro-batches."""


def run_two(script: str, folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    result = subprocess.run(
        [*command, str(HERE / script), str(folder), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("both processes agree") == 2


def test_two_processes_refine_one_model(tmp_path):
    run_two("two_process_run.py", tmp_path)


@pytest.mark.parametrize("words", [[], ["replicated"]], ids=["wrapped critic", "replicated critic"])
def test_two_processes_take_the_same_steps_as_one(tmp_path, words):
    """Whitening, running statistics and the normalization by tokens are global, so losses and weights are the same."""
    run_two("two_process_ppo.py", tmp_path, *words)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = run(tmp_path / "one", processes=1)
    rollouts = list(zip(logged(one)[:-1], two["log"][:-1], strict=True))
    assert len(rollouts) == 3
    for row, other in rollouts:
        for name in COMPARED:
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name
    for mine, theirs in zip(weights(one), two["weights"], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_fsdp_takes_the_same_steps_as_one_process(tmp_path):
    run_two("two_process_fsdp.py", tmp_path)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = untied_trainer(tmp_path / "one", 1, standardize_rewards=True)
    one.train()
    rollouts = list(zip(logged(one)[:-1], two["log"][:-1], strict=True))
    assert len(rollouts) == 3
    for row, other in rollouts:
        for name in COMPARED:
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-5), name
    for mine, theirs in zip(weights(one), two["weights"], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("words", [[], ["adapter"]], ids=["whole model", "adapter"])
def test_a_critic_that_two_processes_shard_is_saved_in_full(tmp_path, words):
    run_two("two_process_critic.py", tmp_path, *words)
