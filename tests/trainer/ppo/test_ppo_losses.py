"""The loss of a micro-batch, worked by hand, and that micro-batches of a step add up."""

import math

import pytest
import torch

from tests.ppo_runs import ppo_config
from tests.trainer.ppo.test_rollout import experience
from trl_rlp.trainer.ppo.ppo_losses import LOSS_METRICS, ppo_loss
from trl_rlp.trainer.ppo.rollout import MicroBatch


def batch(normalizers: tuple[float, float] = (3.0, 3.0), **overrides) -> MicroBatch:
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
    return MicroBatch(experience(**{**values, **overrides}), *torch.tensor(normalizers))


LOG_PROBS = torch.tensor([[math.log(1.5), math.log(0.5)], [0.0, 3.0]])
VALUES = torch.tensor([[0.5, 0.1], [1.0, 2.0]])


def loss_of(tmp_path, data, **settings):
    return ppo_loss(data, LOG_PROBS, torch.ones(2, 2), VALUES, ppo_config(tmp_path, **settings))


def test_numbers_worked_by_hand(tmp_path):
    """
    Ratios 1.5, .5, 1 at a range of .2. Policy: -1.2 (clipped), .8 (clipped), -2; mean -.8. Values within .2 of 0: .2,
    .1, .2; losses max(.25, .64) / 2, .01 / 2, max(0, .64) / 2: .32, .005, .32; mean .215, weight .1.
    """
    loss, terms = loss_of(tmp_path, batch())
    assert loss.item() == pytest.approx(-0.8 + 0.1 * 0.215)
    assert terms["loss/policy_avg"].item() == pytest.approx(-0.8)
    assert terms["loss/value_avg"].item() == pytest.approx(0.215)
    assert terms["policy/clipfrac_avg"].item() == pytest.approx(2 / 3)
    assert terms["val/clipfrac_avg"].item() == pytest.approx(2 / 3)
    assert terms["val/ratio"].item() == pytest.approx(1.0)
    squares = (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 2
    assert terms["policy/approxkl_avg"].item() == pytest.approx(squares / 3)
    assert tuple(terms) == LOSS_METRICS


def test_it_is_a_part_of_its_step(tmp_path):
    """Over the 6 and 12 tokens of a larger step it weighs a half and a quarter as much."""
    loss, terms = loss_of(tmp_path, batch(normalizers=(6.0, 12.0)))
    assert loss.item() == pytest.approx(-0.8 / 2 + 0.1 * 0.215 / 4)
    assert terms["loss/policy_avg"].item() == pytest.approx(-0.8)


def test_importance_ratios_weigh_the_policy_s_tokens(tmp_path):
    loss, _ = loss_of(tmp_path, batch(importance_sampling_ratio=torch.tensor([[0.5], [1.0]])), vf_coef=0.0)
    assert loss.item() == pytest.approx((-0.6 + 0.4 - 2) / 3)


def test_values_need_not_be_clipped(tmp_path):
    """Losses .25 / 2, .01 / 2, 0."""
    loss, terms = loss_of(tmp_path, batch(), cliprange_value=None)
    assert terms["loss/value_avg"].item() == pytest.approx(0.13 / 3)
    assert terms["val/clipfrac_avg"].item() == 0


def test_a_micro_batch_without_tokens_of_the_policy_still_trains_the_critic(tmp_path):
    """All completions are EOS alone, which the former trainer's masks leave to the critic."""
    none, first = torch.zeros(2, 2, dtype=torch.bool), torch.tensor([[True, False], [True, False]])
    loss, terms = loss_of(tmp_path, batch(completion_mask=none, value_mask=first))
    value = (0.64 / 2 + 0.64 / 2) / 3
    assert loss.item() == pytest.approx(0.1 * value)
    assert terms["loss/policy_avg"].item() == 0.0
