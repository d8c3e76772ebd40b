"""Shaped scores and advantages of whole rollouts, worked by hand."""

import pytest
import torch
from accelerate import Accelerator

from tests.ppo_runs import ppo_config
from trl_rlp.losses.kl import kl_estimate
from trl_rlp.trainer.ppo.experience import compute_advantages, contains_token, mask_before_pad, shape_scores
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState


ACCELERATOR = Accelerator(cpu=True)
MASK = torch.tensor([[True, True, False], [True, True, True]])


def shaped(tmp_path, scores, finished=None, state=None, **settings) -> list[float]:
    finished = torch.ones(len(scores), dtype=torch.bool) if finished is None else torch.tensor(finished)
    args = ppo_config(tmp_path, **settings)
    return shape_scores(torch.tensor(scores), finished, args, state or PPOState(0.1), ACCELERATOR).tolist()


def test_scores_stay_as_they_are_by_default(tmp_path):
    assert shaped(tmp_path, [3.0, -70.0], finished=[True, False]) == [3.0, -70.0]


def test_the_penalty_is_for_completions_without_an_end(tmp_path):
    assert shaped(tmp_path, [3.0, 3.0], finished=[True, False], missing_eos_penalty=1.5) == [3.0, 1.5]


def test_scores_are_divided_by_the_deviation_of_all_so_far(tmp_path):
    """0 and 4 deviate by 2; with 2 and 2 the mean is 2 and the squares 4 + 4 + 0 + 0, so by the root of 2."""
    state = PPOState(0.1)
    assert shaped(tmp_path, [0.0, 4.0], state=state, normalize_rewards=True) == [0.0, 2.0]
    expected = pytest.approx([2 / 2**0.5] * 2)
    assert shaped(tmp_path, [2.0, 2.0], state=state, normalize_rewards=True) == expected


def test_clipping_comes_after_normalization_and_before_the_penalty(tmp_path):
    settings = {"normalize_rewards": True, "reward_clip": 1.5, "missing_eos_penalty": 1.0}
    assert shaped(tmp_path, [0.0, 4.0], finished=[True, False], **settings) == [0.0, 0.5]


def test_a_score_that_is_not_finite_leaves_the_statistics_alone(tmp_path):
    state = PPOState(0.1)
    scores = shaped(tmp_path, [0.0, 4.0, float("nan")], state=state, normalize_rewards=True)
    assert scores[:2] == [0.0, 2.0] and scores[2] != scores[2]
    assert (state.score_count, state.score_mean, state.score_squares) == (2.0, 2.0, 8.0)


def advantages(tmp_path, scores=(1.0, 2.0), **settings) -> tuple[torch.Tensor, ...]:
    """Advantages, returns, mask of the values, and the KL divergence that went in."""
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -3.0]])
    ref_log_probs = torch.tensor([[-1.5, -2.0, -1.0], [-1.0, -3.0, -2.0]])
    values = torch.tensor([[0.5, 0.0, 7.0], [0.0, 1.0, 0.5]])
    args = ppo_config(tmp_path, lam=1.0, **settings)
    kl = kl_estimate(log_probs, ref_log_probs, args.kl_estimator).masked_fill(~MASK, 0)
    return *compute_advantages(torch.tensor(scores), kl, values, MASK, args, 0.5, ACCELERATOR), kl


def test_rewards_to_go_minus_values(tmp_path):
    """
    KL (k1): [.5, 0, -], [0, 2, -1]. Rewards: [-.25, 1, -], [0, -1, .5 + 2]. Returns with λ = 1: [.75, 1, -], [1.5,
    1.5, 2.5]. Advantages before whitening: [.25, 1], [1.5, .5, 2]: mean 1.05, unbiased variance 2.05 / 4 = .5125.
    """
    whitened, returns, value_mask, kl = advantages(tmp_path)
    assert kl.tolist() == [[0.5, 0.0, 0.0], [0.0, 2.0, -1.0]]
    assert returns.tolist() == [[0.75, 1.0, 0.0], [1.5, 1.5, 2.5]]
    raw = torch.tensor([[0.25, 1.0, 1.05], [1.5, 0.5, 2.0]])
    assert torch.allclose(whitened, (raw - 1.05) / 0.5125**0.5, atol=1e-6)
    assert value_mask.equal(MASK)


def test_the_biased_deviation_is_alpacafarm_s(tmp_path):
    biased, unbiased = (advantages(tmp_path, unbiased_whitening=flag)[0] for flag in (False, True))
    assert torch.allclose(biased, unbiased * (5 / 4) ** 0.5, atol=1e-6)


def test_the_score_may_come_after_the_last_token(tmp_path):
    """Row 0 has room: its score of 1 comes one later, where the value is 7; row 1 has none."""
    whitened, returns, value_mask, _ = advantages(tmp_path, score_position="after_last_token")
    assert value_mask.tolist() == [[True] * 3] * 2
    assert returns.tolist() == [[0.75, 1.0, 1.0], [1.5, 1.5, 2.5]]
    assert whitened[0, 2] == 0


def test_rewards_are_whitened_about_their_mean(tmp_path):
    """Rewards [-.25, 1], [0, -1, 2.5]: mean .45, squares .49 + .3025 + .2025 + 2.1025 + 4.2025 = 7.3; by 4: 1.825."""
    _, returns, _, _ = advantages(tmp_path, whiten_rewards=True)
    whitened = (torch.tensor([-0.25, 1.0]) - 0.45) / 1.825**0.5 + 0.45
    assert returns[0, :2].tolist() == pytest.approx([whitened.sum().item(), whitened[1].item()], abs=1e-5)


def test_the_former_trainer_s_completions_end_before_the_first_pad_token():
    ids = torch.tensor([[5, 1, 6], [1, 5, 5], [5, 6, 7]])
    assert mask_before_pad(ids, 1).tolist() == [[True, False, False], [False] * 3, [True] * 3]


def test_a_completion_with_a_stop_token_is_finished():
    ids = torch.tensor([[5, 1, 1], [5, 6, 1], [5, 6, 7]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]]).bool()
    assert contains_token(ids, mask, [1, 7]).tolist() == [True, False, True]


def test_a_completion_without_tokens_is_scored_where_the_first_would_be(tmp_path):
    mask = torch.tensor([[False, False], [True, True]])
    zeros = torch.zeros(2, 2)
    args = ppo_config(tmp_path, score_position="after_last_token", lam=1.0)
    _, returns, value_mask = compute_advantages(torch.tensor([3.0, 1.0]), zeros, zeros, mask, args, 0.5, ACCELERATOR)
    assert returns[0].tolist() == [3.0, 0.0]
    assert value_mask.tolist() == [[True, False], [True, True]]


def test_a_single_token_has_no_advantage_over_itself(tmp_path):
    one, zero = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    args = ppo_config(tmp_path, whiten_rewards=True)
    whitened, returns, _ = compute_advantages(torch.tensor([3.0]), zero, zero, one, args, 0.5, ACCELERATOR)
    assert whitened.tolist() == [[0.0]] and returns.tolist() == [[3.0]]
