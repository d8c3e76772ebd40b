"""Shaped scores, advantages and masks of a rollout, computed by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.ppo_runs import ppo_config, ppo_trainer
from tests.tiny_models import tiny_tokenizer
from trl_rlp.losses.kl import KL_ESTIMATORS
from trl_rlp.trainer.ppo.advantages import (
    build_experience,
    compute_advantages,
    contains_token,
    mask_before_pad,
    shape_scores,
)
from trl_rlp.trainer.ppo.experience import Experience
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState


ACCELERATOR = Accelerator(cpu=True)
MASK = torch.tensor([[True, True, False], [True, True, True]])


def shape(tmp_path, scores, finished=None, state=None, **settings) -> list[float]:
    finished = torch.ones(len(scores), dtype=torch.bool) if finished is None else torch.tensor(finished)
    args = ppo_config(tmp_path, **settings)
    return shape_scores(torch.tensor(scores), finished, args, state or PPOState(0.1), ACCELERATOR).tolist()


def test_scores_do_not_change_by_default(tmp_path):
    assert shape(tmp_path, [3.0, -70.0], finished=[True, False]) == [3.0, -70.0]


def test_penalty_is_subtracted_from_unfinished_completions(tmp_path):
    assert shape(tmp_path, [3.0, 3.0], finished=[True, False], missing_eos_penalty=1.5) == [3.0, 1.5]


def test_scores_are_divided_by_the_standard_deviation_of_all_scores_so_far(tmp_path):
    """
    The standard deviation of 0 and 4 is 2. With 2 and 2 the mean is 2 and the squares are 4 + 4 + 0 + 0, so it is √2.
    """
    state = PPOState(0.1)
    assert shape(tmp_path, [0.0, 4.0], state=state, normalize_rewards=True) == [0.0, 2.0]
    expected = pytest.approx([2 / 2**0.5] * 2)
    assert shape(tmp_path, [2.0, 2.0], state=state, normalize_rewards=True) == expected


def test_clipping_comes_after_normalization_and_before_the_penalty(tmp_path):
    settings = {"normalize_rewards": True, "reward_clip": 1.5, "missing_eos_penalty": 1.0}
    assert shape(tmp_path, [0.0, 4.0], finished=[True, False], **settings) == [0.0, 0.5]


def test_score_that_is_not_finite_does_not_enter_the_statistics(tmp_path):
    state = PPOState(0.1)
    scores = shape(tmp_path, [0.0, 4.0, float("nan")], state=state, normalize_rewards=True)
    assert scores[:2] == [0.0, 2.0] and scores[2] != scores[2]
    assert (state.score_count, state.score_mean, state.score_squares) == (2.0, 2.0, 8.0)


LOG_PROBS = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -3.0]])
REF_LOG_PROBS = torch.tensor([[-1.5, -2.0, -1.0], [-1.0, -3.0, -2.0]])
VALUES = torch.tensor([[0.5, 0.0, 7.0], [0.0, 1.0, 0.5]])


def build(tmp_path, scores=(1.0, 2.0), state=None, **settings) -> Experience:
    """Builds the experience of two completions with scores 1 and 2, from models that return the numbers above."""
    args = ppo_config(tmp_path, **{"lam": 1.0, **settings})
    models = SimpleNamespace(
        args=args, accelerator=ACCELERATOR, evaluate_rollout=lambda tokens: (LOG_PROBS, REF_LOG_PROBS, VALUES)
    )
    generated = {
        "prompt_ids": torch.tensor([[0, 5], [6, 7]]),
        "prompt_mask": torch.tensor([[0, 1], [1, 1]]),
        "completion_ids": torch.tensor([[8, 1, 0], [9, 8, 9]]),
        "completion_mask": MASK.int(),
    }
    return build_experience(generated, torch.tensor(scores), models, state or PPOState(0.5), [1], pad_token_id=0)


def test_refined_reward_does_not_move_the_advantages(tmp_path):
    """
    A refinement moves both scores by 3. With λ = 0.5 the raw advantages of the same scores without it are:

    Row 0: δ = [-0.25 + 0 - 0.5, 1 - 0] = [-0.75, 1], so A = [-0.25, 1].
    Row 1: δ = [0 + 1 - 0, -1 + 0.5 - 1, 2.5 - 0.5] = [1, -1.5, 2], so A = [0.75, -0.5, 2].
    Their mean is 0.6, and their squared differences from it are 0.7225 + 0.16 + 0.0225 + 1.21 + 1.96 = 4.075.

    If the critic does not know of it, they are 1.5 and 3, and 0.75, 1.5 and 3 higher: [1.25, 4], [1.5, 1, 5]. The
    returns, which are the critic's targets, are as much too high.
    """
    scores = [4.0, 5.0]
    told = build(tmp_path, scores, PPOState(0.5, value_shift=3.0), lam=0.5)
    whitened = (torch.tensor([[-0.25, 1.0, 0.6], [0.75, -0.5, 2.0]]) - 0.6) / (4.075 / 4) ** 0.5
    assert torch.allclose(told.advantages, whitened, atol=1e-6)
    assert torch.allclose(told.returns, torch.tensor([[0.25, 1.0, 0.0], [0.75, 0.5, 2.5]]))
    assert told.scores.tolist() == scores and told.old_values is VALUES
    not_told = build(tmp_path, scores, lam=0.5)
    assert torch.allclose(not_told.returns, torch.tensor([[1.75, 4.0, 0.0], [1.5, 2.0, 5.5]]))
    assert not torch.allclose(not_told.advantages, told.advantages, atol=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gamma": 0.9},
        {"whiten_rewards": True},
        {"score_position": "after_last_token"},
        {"missing_eos_penalty": 1.0},
    ],
    ids=str,
)
def test_refined_reward_leaves_advantages_and_returns_as_they_were(tmp_path, settings):
    settings = {"lam": 0.5, **settings}
    expected = build(tmp_path, **settings)
    told = build(tmp_path, [4.0, 5.0], PPOState(0.5, value_shift=3.0), **settings)
    assert torch.allclose(told.advantages, expected.advantages, atol=1e-6)
    assert torch.allclose(told.returns, expected.returns, atol=1e-6)


def test_statistics_of_scores_move_with_the_reward(tmp_path):
    """
    Scores of 0 and 4, then 1 and 2, which a refinement moves to 4 and 5. The statistics are those of 3, 7, 4 and 5:
    mean 4.75, as without the refinement 1.75, and squares 3.0625 + 5.0625 + 0.5625 + 0.0625 = 8.75. The score is
    divided by √(8.75 / 4), and so is the shift.
    """
    experiences = {}
    for jump in (0.0, 3.0):
        state = PPOState(0.5)
        shape(tmp_path, [0.0, 4.0], state=state, normalize_rewards=True)
        state.shift_values(jump)
        scores = [1.0 + jump, 2.0 + jump]
        experiences[jump] = build(tmp_path, scores, state, lam=0.5, normalize_rewards=True)
        assert (state.score_mean, state.score_squares) == (pytest.approx(1.75 + jump), pytest.approx(8.75))
    assert experiences[3.0].scores.tolist() == pytest.approx([4 / (8.75 / 4) ** 0.5, 5 / (8.75 / 4) ** 0.5])
    for name in ("advantages", "returns"):
        before, after = (getattr(experience, name) for experience in experiences.values())
        assert torch.allclose(after, before, atol=1e-6), name


def test_advantages_are_returns_minus_values(tmp_path):
    """
    KL (k1): [0.5, 0, -], [0, 2, -1]. Rewards: [-0.25, 1, -], [0, -1, 0.5 + 2]. Returns with λ = 1: [0.75, 1, -],
    [1.5, 1.5, 2.5]. Advantages before whitening: [0.25, 1], [1.5, 0.5, 2]. Their mean is 1.05, and their unbiased
    variance is 2.05 / 4 = 0.5125.
    """
    experience = build(tmp_path)
    assert experience.kl.tolist() == [[0.5, 0.0, 0.0], [0.0, 2.0, -1.0]]
    assert experience.kl_rewards.tolist() == [[-0.25, 0.0, 0.0], [0.0, -1.0, 0.5]]
    assert experience.returns.tolist() == [[0.75, 1.0, 0.0], [1.5, 1.5, 2.5]]
    raw = torch.tensor([[0.25, 1.0, 1.05], [1.5, 0.5, 2.0]])
    assert torch.allclose(experience.advantages, (raw - 1.05) / 0.5125**0.5, atol=1e-6)
    assert experience.value_mask.equal(MASK) and experience.completion_mask.equal(MASK)


def test_experience_holds_what_was_sampled_and_how_the_models_evaluated_it(tmp_path):
    experience = build(tmp_path)
    assert experience.prompt_ids.tolist() == [[0, 5], [6, 7]]
    assert experience.completion_ids.tolist() == [[8, 1, 0], [9, 8, 9]]
    assert experience.old_log_probs is LOG_PROBS and experience.old_values is VALUES
    assert experience.scores.tolist() == [1.0, 2.0] and experience.finished.tolist() == [True, False]
    assert experience.importance_sampling_ratio is None and len(experience) == 2


KL = {
    "k1": [[0.5, 0.0, 0.0], [0.0, 2.0, -1.0]],
    "k2": [[0.125, 0.0, 0.0], [0.0, 2.0, 0.5]],
    "k3": [[math.exp(-0.5) - 0.5, 0.0, 0.0], [0.0, math.exp(-2) + 1, math.e - 2]],
    "clamped": [[0.5, 0.0, 0.0], [0.0, 2.0, 0.0]],
}
"""Of log-ratios [0.5, 0, -], [0, 2, -1]: l, l² / 2, exp(-l) - 1 + l, and max(l, 0)."""


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_kl_estimator_of_the_configuration_is_used(tmp_path, estimator):
    experience = build(tmp_path, kl_estimator=estimator)
    assert torch.allclose(experience.kl, torch.tensor(KL[estimator]), atol=1e-6)
    assert torch.allclose(experience.kl_rewards, -0.5 * torch.tensor(KL[estimator]), atol=1e-6)


def test_whitening_can_use_the_biased_standard_deviation(tmp_path):
    biased, unbiased = (build(tmp_path, unbiased_whitening=flag).advantages for flag in (False, True))
    assert torch.allclose(biased, unbiased * (5 / 4) ** 0.5, atol=1e-6)


def test_score_can_be_after_the_last_token(tmp_path):
    """Row 0 has room: its score of 1 is one position later, where the value is 7. Row 1 has no room."""
    experience = build(tmp_path, score_position="after_last_token")
    assert experience.value_mask.tolist() == [[True] * 3] * 2
    assert experience.returns.tolist() == [[0.75, 1.0, 1.0], [1.5, 1.5, 2.5]]
    assert experience.advantages[0, 2] == 0


def test_whitened_rewards_keep_their_mean(tmp_path):
    """
    Rewards: [-0.25, 1], [0, -1, 2.5]. The mean is 0.45. The sum of squares is 0.49 + 0.3025 + 0.2025 + 2.1025 + 4.2025
    = 7.3, and the variance is 7.3 / 4 = 1.825.
    """
    returns = build(tmp_path, whiten_rewards=True).returns
    whitened = (torch.tensor([-0.25, 1.0]) - 0.45) / 1.825**0.5 + 0.45
    assert returns[0, :2].tolist() == pytest.approx([whitened.sum().item(), whitened[1].item()], abs=1e-5)


def test_mask_of_trl_1_12_ends_before_the_first_pad_token():
    ids = torch.tensor([[5, 1, 6], [1, 5, 5], [5, 6, 7]])
    assert mask_before_pad(ids, 1).tolist() == [[True, False, False], [False] * 3, [True] * 3]


def test_completion_with_a_stop_token_is_finished():
    ids = torch.tensor([[5, 1, 1], [5, 6, 1], [5, 6, 7]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]]).bool()
    assert contains_token(ids, mask, [1, 7]).tolist() == [True, False, True]


def test_completion_without_tokens_gets_its_score_at_the_first_position(tmp_path):
    mask = torch.tensor([[False, False], [True, True]])
    zeros = torch.zeros(2, 2)
    args = ppo_config(tmp_path, score_position="after_last_token", lam=1.0)
    _, returns, value_mask = compute_advantages(torch.tensor([3.0, 1.0]), zeros, zeros, mask, args, 0.5, ACCELERATOR)
    assert returns[0].tolist() == [3.0, 0.0]
    assert value_mask.tolist() == [[True, False], [True, True]]


def test_single_token_has_an_advantage_of_zero(tmp_path):
    one, zero = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    args = ppo_config(tmp_path, whiten_rewards=True)
    whitened, returns, _ = compute_advantages(torch.tensor([3.0]), zero, zero, one, args, 0.5, ACCELERATOR)
    assert whitened.tolist() == [[0.0]] and returns.tolist() == [[3.0]]


def test_mask_excludes_eos_as_in_trl_1_12_if_it_is_the_pad_token(tmp_path):
    """Every completion is `a` and EOS. Both count by default. With `after_last_token` only `a` counts."""
    lengths = {}
    for name, settings in {"trl-1.12": {"score_position": "after_last_token"}, "default": {}}.items():
        tokenizer = tiny_tokenizer(pad_is_eos=True)
        trainer = ppo_trainer(tmp_path / name, processing_class=tokenizer, total_episodes=4, **settings)
        a = tokenizer("a")["input_ids"]
        trainer._generate_single_turn = lambda ids, *args, a=a, eos=tokenizer.eos_token_id, **kwargs: (
            [[*a, eos] for _ in ids],
            None,
        )
        trainer.train()
        lengths[name] = trainer._rollout.experience.completion_mask.sum(dim=1).tolist()
    assert lengths == {"trl-1.12": [1] * 4, "default": [2] * 4}
