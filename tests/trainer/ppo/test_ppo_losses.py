"""The loss of a micro-batch, computed by hand."""

import math

import pytest
import torch

from tests.ppo_runs import ppo_config
from tests.trainer.ppo.test_experience import make_experience
from trl_rlp.trainer.ppo.experience import MicroBatch
from trl_rlp.trainer.ppo.ppo_losses import LOSS_METRICS, ppo_loss


def build_micro_batch(normalizers: tuple[float, float] = (3.0, 3.0), **overrides) -> MicroBatch:
    mask = torch.tensor([[True, True], [True, False]])
    values = {
        "completion_mask": mask,
        "value_mask": mask,
        "old_log_probs": torch.zeros(2, 2),
        "advantages": torch.tensor([[1.0, -1.0], [2.0, 5.0]]),
        "old_values": torch.zeros(2, 2),
        "returns": torch.tensor([[1.0, 0.0], [1.0, 7.0]]),
        "importance_sampling_ratio": None,
    }
    return MicroBatch(make_experience(**{**values, **overrides}), *torch.tensor(normalizers))


LOG_PROBS = torch.tensor([[math.log(1.5), math.log(0.5)], [0.0, 3.0]])
VALUES = torch.tensor([[0.5, 0.1], [1.0, 2.0]])


def compute_loss(tmp_path, micro_batch, **settings):
    return ppo_loss(micro_batch, LOG_PROBS, torch.ones(2, 2), VALUES, ppo_config(tmp_path, **settings))


def test_loss_and_metrics(tmp_path):
    """
    The ratios are 1.5, 0.5 and 1, and the clip range is 0.2. The policy losses are -1.2 (clipped), 0.8 (clipped) and
    -2. Their mean is -0.8. The clipped values are 0.2, 0.1 and 0.2. The value losses are max(0.25, 0.64) / 2 = 0.32,
    0.01 / 2 = 0.005 and max(0, 0.64) / 2 = 0.32. Their mean is 0.215, and their weight is 0.1.
    """
    loss, metrics = compute_loss(tmp_path, build_micro_batch())
    assert loss.item() == pytest.approx(-0.8 + 0.1 * 0.215)
    assert metrics["loss/policy_avg"].item() == pytest.approx(-0.8)
    assert metrics["loss/value_avg"].item() == pytest.approx(0.215)
    assert metrics["policy/clipfrac_avg"].item() == pytest.approx(2 / 3)
    assert metrics["val/clipfrac_avg"].item() == pytest.approx(2 / 3)
    assert metrics["val/ratio"].item() == pytest.approx(1.0)
    squares = (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 2
    assert metrics["policy/approxkl_avg"].item() == pytest.approx(squares / 3)
    assert tuple(metrics) == LOSS_METRICS


def test_loss_is_a_share_of_the_loss_of_its_step(tmp_path):
    """In a step with 6 policy tokens and 12 value tokens, the two losses count a half and a quarter as much."""
    loss, metrics = compute_loss(tmp_path, build_micro_batch(normalizers=(6.0, 12.0)))
    assert loss.item() == pytest.approx(-0.8 / 2 + 0.1 * 0.215 / 4)
    assert metrics["loss/policy_avg"].item() == pytest.approx(-0.8)


def test_importance_sampling_ratios_multiply_the_policy_losses(tmp_path):
    micro_batch = build_micro_batch(importance_sampling_ratio=torch.tensor([[0.5], [1.0]]))
    loss, _ = compute_loss(tmp_path, micro_batch, vf_coef=0.0)
    assert loss.item() == pytest.approx((-0.6 + 0.4 - 2) / 3)


def test_value_clipping_can_be_disabled(tmp_path):
    """The value losses are 0.25 / 2, 0.01 / 2 and 0."""
    loss, metrics = compute_loss(tmp_path, build_micro_batch(), cliprange_value=None)
    assert metrics["loss/value_avg"].item() == pytest.approx(0.13 / 3)
    assert metrics["val/clipfrac_avg"].item() == 0


def test_micro_batch_without_policy_tokens_still_trains_the_critic(tmp_path):
    """All completions are only EOS. The masks of TRL 1.12 exclude EOS for the policy, but not for the critic."""
    no_tokens, first_token = torch.zeros(2, 2, dtype=torch.bool), torch.tensor([[True, False], [True, False]])
    loss, metrics = compute_loss(tmp_path, build_micro_batch(completion_mask=no_tokens, value_mask=first_token))
    value = (0.64 / 2 + 0.64 / 2) / 3
    assert loss.item() == pytest.approx(0.1 * value)
    assert metrics["loss/policy_avg"].item() == 0.0
