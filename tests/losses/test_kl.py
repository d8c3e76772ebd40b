import math

import pytest
import torch

from trl_rlp.losses import (
    KL_ESTIMATORS,
    kl_estimate,
    locate_after_last_token,
    locate_last_token,
    next_kl_coef,
    token_rewards,
)


LN2 = math.log(2)
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])

every_estimator = pytest.mark.parametrize("estimator", KL_ESTIMATORS)


def read_expected(values, estimator):
    assert estimator in values, f"Add the expected value of the KL estimator {estimator!r} to this test."
    return values[estimator]


@every_estimator
def test_estimates_match_a_calculation_by_hand(estimator):
    """
    The probabilities are 1/2, 1/4, 1/4 under the policy and 1/4, 1/2, 1/4 under the reference, so the log ratios are
    ln 2, -ln 2 and 0. k3: 1/2 - 1 + ln 2, then 2 - 1 - ln 2.
    """
    values = {
        "k1": [LN2, -LN2, 0],
        "k2": [LN2**2 / 2, LN2**2 / 2, 0],
        "k3": [LN2 - 1 / 2, 1 - LN2, 0],
        "clamped": [LN2, 0, 0],
    }
    expected = read_expected(values, estimator)
    log_probs, ref_log_probs = torch.tensor([[[1 / 2, 1 / 4, 1 / 4]], [[1 / 4, 1 / 2, 1 / 4]]]).log()
    assert kl_estimate(log_probs, ref_log_probs, estimator)[0].tolist() == pytest.approx(expected, abs=1e-7)


@every_estimator
def test_only_k1_and_k3_are_unbiased(estimator):
    """
    π = (1/2, 1/4, 1/4) and π_ref = (1/4, 1/2, 1/4), so KL = 1/2 ln 2 - 1/4 ln 2. k2: 3/4 of ln² 2 / 2. clamped:
    1/2 ln 2.
    """
    values = {"k1": LN2 / 4, "k3": LN2 / 4, "k2": 3 / 8 * LN2**2, "clamped": LN2 / 2}
    expected = read_expected(values, estimator)
    policy, reference = torch.tensor([[1 / 2, 1 / 4, 1 / 4]]), torch.tensor([[1 / 4, 1 / 2, 1 / 4]])
    estimates = kl_estimate(policy.log(), reference.log(), estimator)
    assert (policy * estimates).sum().item() == pytest.approx(expected)


@every_estimator
def test_equal_policies_give_0_and_only_k1_can_be_negative(estimator):
    log_probs, ref_log_probs = -torch.rand(2, 64, 32, generator=torch.Generator().manual_seed(0))
    assert kl_estimate(log_probs, log_probs, estimator).eq(0).all()
    assert (kl_estimate(log_probs, ref_log_probs, estimator).min() < -1e-6) == (estimator == "k1")


@every_estimator
def test_small_log_ratios_keep_their_precision(estimator):
    """Near 0, k3 is x² / 2 = 5e-9 for x = 1e-4. Computing e^-x - 1 + x in fp32 would lose it."""
    log_probs, ref_log_probs = torch.tensor([[1e-4]]), torch.tensor([[0.0]])
    expected = read_expected({"k1": 1e-4, "k2": 5e-9, "k3": 5e-9, "clamped": 1e-4}, estimator)
    assert kl_estimate(log_probs, ref_log_probs, estimator).item() == pytest.approx(expected, rel=1e-2)


@every_estimator
def test_nan_gives_a_nan_estimate(estimator):
    assert kl_estimate(torch.tensor([[math.nan]]), torch.zeros(1, 1), estimator).isnan().all()


def test_errors_name_the_invalid_estimate():
    with pytest.raises(ValueError, match=r"equal, got `log_probs` \(1, 2\), `ref_log_probs` \(1, 1\)"):
        kl_estimate(torch.zeros(1, 2), torch.zeros(1, 1), "k1")
    with pytest.raises(KeyError, match="k4"):
        kl_estimate(torch.zeros(1, 2), torch.zeros(1, 2), "k4")


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.5), (6.6, 0.505), (5.4, 0.495), (60.0, 0.51), (7.2, 0.51), (0.0, 0.49), (-3.0, 0.49)],
)
def test_next_kl_coef_matches_a_calculation_by_hand(kl, expected):
    """
    The target is 6 nats, with 1,000 episodes and a horizon of 10,000. At 6.6 nats the error is 0.1, which gives
    0.5 (1 + 0.1 * 0.1). Above 7.2 and below 4.8 nats it is clipped, which gives 0.5 (1 ± 0.1 * 0.2).
    """
    assert next_kl_coef(0.5, kl, target=6.0, horizon=10_000, episodes=1_000) == pytest.approx(expected)


def test_a_clipped_error_changes_the_coefficient_by_a_fifth_in_one_horizon():
    """Ten rollouts of 1,000 episodes give 1.02^10 = 1.219. One rollout of 10,000 episodes gives 1.2."""
    kl_coef = 1.0
    for _ in range(10):
        kl_coef = next_kl_coef(kl_coef, 100.0, target=6.0, horizon=10_000, episodes=1_000)
    assert kl_coef == pytest.approx(1.02**10)
    assert next_kl_coef(1.0, 100.0, target=6.0, horizon=10_000, episodes=10_000) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kl": math.nan}, "`kl` must be finite, got nan"),
        ({"kl": math.inf}, "`kl` must be finite, got inf"),
        ({"target": 0.0}, "`target` must be greater than 0 nats, got 0.0"),
        ({"horizon": 200}, "`horizon` must be longer than 1000 episodes / 5, got 200"),
        ({"horizon": 0}, "`horizon` must be longer than 1000 episodes / 5, got 0"),
    ],
)
def test_invalid_arguments_of_next_kl_coef_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        next_kl_coef(**{"kl_coef": 0.2, "kl": 6.0, "target": 6.0, "horizon": 10_000, "episodes": 1_000} | changes)


def test_the_last_token_and_the_position_after_it():
    """The row without padding has no position after its last token."""
    positions, value_mask = locate_after_last_token(MASK)
    assert locate_last_token(MASK).tolist() == [1, 2, 0]
    assert positions.tolist() == [2, 2, 1]
    assert value_mask.tolist() == [[True, True, True], [True, True, True], [True, True, False]]


def test_the_position_after_an_empty_completion_is_0():
    """If EOS is the pad token, a completion of EOS alone has no tokens in TRL 1.12, which scores position 0."""
    positions, value_mask = locate_after_last_token(torch.tensor([[False, False]]))
    assert positions.tolist() == [0] and value_mask.tolist() == [[True, False]]


def test_the_last_token_of_a_completion_of_one_token():
    mask = torch.tensor([[True]])
    assert locate_last_token(mask).tolist() == [0]
    assert locate_after_last_token(mask)[0].tolist() == [0] and torch.equal(locate_after_last_token(mask)[1], mask)


@pytest.mark.parametrize("function", [locate_last_token, locate_after_last_token])
@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (torch.tensor([[1, 1, 0]]), TypeError, "`mask` must be a boolean mask, got `torch.int64`"),
        (torch.tensor([[True, True], [False, True]]), ValueError, r"right-padded, got .* in row\(s\) \[1\]"),
        (torch.tensor([[True, False, True]]), ValueError, r"right-padded, got .* in row\(s\) \[0\]"),
    ],
)
def test_errors_name_the_invalid_mask(function, mask, error, match):
    with pytest.raises(error, match=match):
        function(mask)


def test_an_empty_completion_has_no_last_token():
    with pytest.raises(ValueError, match=r"`mask` has no token in row\(s\) \[1\]. Drop empty completions"):
        locate_last_token(torch.tensor([[True, True], [False, False]]))


def test_token_rewards_match_a_calculation_by_hand():
    """
    With β = 1/2 the penalties are -1, 1 | -2, -2, -2 | -1. The scores 10, 20, 30 are added at the last tokens, or one
    position later if there is one.
    """
    scores, kl = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([[2.0, -2.0, 9.0], [4.0, 4.0, 4.0], [2.0, 9.0, 9.0]])
    rewards = token_rewards(scores, kl, MASK, kl_coef=0.5)
    assert rewards.tolist() == [[-1, 11, 0], [-2, -2, 18], [29, 0, 0]]
    after = token_rewards(scores, kl, MASK, kl_coef=0.5, score_positions=locate_after_last_token(MASK)[0])
    assert after.tolist() == [[-1, 1, 10], [-2, -2, 18], [-1, 30, 0]]


def test_without_a_penalty_the_rewards_are_the_scores():
    kl = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, MASK, kl_coef=0.0)
    assert torch.equal(rewards.sum(dim=1), torch.tensor([1.0, 2.0, 3.0])) and rewards.count_nonzero() == 3


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_padding_does_not_change_the_rewards(poison):
    kl = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    rewards = token_rewards(torch.ones(3), kl, MASK, kl_coef=0.1)
    assert torch.equal(rewards, token_rewards(torch.ones(3), kl.masked_fill(~MASK, poison), MASK, kl_coef=0.1))


def test_a_nan_score_gives_a_nan_reward():
    assert token_rewards(torch.tensor([math.nan]), torch.zeros(1, 2), MASK[1:2, :2], kl_coef=0.1)[0, 1].isnan()


def test_scores_may_have_another_precision():
    rewards = token_rewards(torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, 3), MASK, kl_coef=0.1)
    assert rewards.dtype == torch.float32


@pytest.mark.parametrize(
    ("scores", "kl", "match"),
    [
        (torch.ones(3, 1), torch.zeros(3, 3), r"`scores` \(3, 1\), `completions` \(3,\)"),
        (torch.ones(2), torch.zeros(3, 3), r"`scores` \(2,\), `completions` \(3,\)"),
        (torch.ones(3), torch.zeros(3, 2), r"`kl` \(3, 2\), `mask` \(3, 3\)"),
    ],
)
def test_errors_name_the_wrong_shapes_of_rewards(scores, kl, match):
    with pytest.raises(ValueError, match=match):
        token_rewards(scores, kl, MASK, kl_coef=0.1)
