import math

import pytest
import torch

from trl_rlp.losses import KL_ESTIMATORS, after_last_token, kl_estimate, last_token, next_kl_coef, token_rewards


LN2 = math.log(2)
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])

every_estimator = pytest.mark.parametrize("estimator", KL_ESTIMATORS)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [LN2, -LN2, 0]),
        ("k2", [LN2**2 / 2, LN2**2 / 2, 0]),
        ("k3", [LN2 - 1 / 2, 1 - LN2, 0]),
        ("clamped", [LN2, 0, 0]),
    ],
)
def test_estimates_worked_by_hand(estimator, expected):
    """
    The policy gives 1/2, 1/4, 1/4 to tokens that the reference gives 1/4, 1/2, 1/4: log ratios ln 2, -ln 2 and 0. k3:
    1/2 - 1 + ln 2, then 2 - 1 - ln 2.
    """
    log_probs, ref_log_probs = torch.tensor([[[1 / 2, 1 / 4, 1 / 4]], [[1 / 4, 1 / 2, 1 / 4]]]).log()
    assert kl_estimate(log_probs, ref_log_probs, estimator)[0].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", LN2 / 4), ("k3", LN2 / 4), ("k2", 3 / 8 * LN2**2), ("clamped", LN2 / 2)],
)
def test_the_mean_over_all_tokens_is_the_divergence_for_k1_and_k3_only(estimator, expected):
    """
    π = (1/2, 1/4, 1/4), π_ref = (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2. k2: 3/4 of ln² 2 / 2. clamped: 1/2 ln 2.
    """
    policy, reference = torch.tensor([[1 / 2, 1 / 4, 1 / 4]]), torch.tensor([[1 / 4, 1 / 2, 1 / 4]])
    estimates = kl_estimate(policy.log(), reference.log(), estimator)
    assert (policy * estimates).sum().item() == pytest.approx(expected)


@every_estimator
def test_equal_policies_do_not_diverge_and_only_k1_goes_below_zero(estimator):
    log_probs, ref_log_probs = -torch.rand(2, 64, 32, generator=torch.Generator().manual_seed(0))
    assert kl_estimate(log_probs, log_probs, estimator).eq(0).all()
    assert (kl_estimate(log_probs, ref_log_probs, estimator).min() < -1e-6) == (estimator == "k1")


@every_estimator
def test_small_divergences_keep_their_digits(estimator):
    """k3 near 0 is half the square, which e^x - 1 - x in fp32 would lose: 1e-4 squared, halved, is 5e-9."""
    log_probs, ref_log_probs = torch.tensor([[1e-4]]), torch.tensor([[0.0]])
    expected = {"k1": 1e-4, "k2": 5e-9, "k3": 5e-9, "clamped": 1e-4}[estimator]
    assert kl_estimate(log_probs, ref_log_probs, estimator).item() == pytest.approx(expected, rel=1e-2)


@every_estimator
def test_nan_is_not_hidden_in_an_estimate(estimator):
    assert kl_estimate(torch.tensor([[math.nan]]), torch.zeros(1, 1), estimator).isnan().all()


def test_bad_estimates_are_named():
    with pytest.raises(ValueError, match=r"equal, got `log_probs` \(1, 2\), `ref_log_probs` \(1, 1\)"):
        kl_estimate(torch.zeros(1, 2), torch.zeros(1, 1), "k1")
    with pytest.raises(KeyError, match="k4"):
        kl_estimate(torch.zeros(1, 2), torch.zeros(1, 2), "k4")


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.5), (6.6, 0.505), (5.4, 0.495), (60.0, 0.51), (7.2, 0.51), (0.0, 0.49), (-3.0, 0.49)],
)
def test_next_kl_coef_worked_by_hand(kl, expected):
    """
    Target 6, 1,000 episodes, horizon 10,000. At 6.6 nats the error is 0.1: 0.5 (1 + 0.1 * 0.1). Beyond 7.2 and below
    4.8 it is clipped: 0.5 (1 ± 0.1 * 0.2).
    """
    assert next_kl_coef(0.5, kl, target=6.0, horizon=10_000, episodes=1_000) == pytest.approx(expected)


def test_the_horizon_is_what_one_fifth_takes():
    """Ten rollouts of 1,000 episodes under a clipped error: 1.02^10 = 1.219, where one step of the whole is 1.2."""
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
def test_a_coefficient_that_would_go_wrong_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        next_kl_coef(**{"kl_coef": 0.2, "kl": 6.0, "target": 6.0, "horizon": 10_000, "episodes": 1_000} | changes)


def test_the_last_token_and_the_position_after_it():
    """The full row has no position after its last token."""
    positions, value_mask = after_last_token(MASK)
    assert last_token(MASK).tolist() == [1, 2, 0]
    assert positions.tolist() == [2, 2, 1]
    assert value_mask.tolist() == [[True, True, True], [True, True, True], [True, True, False]]


def test_a_completion_that_lost_its_only_token_has_a_position_after_it():
    """Where EOS is the pad token, TRL 1.12 leaves a completion of EOS alone without tokens, and scores position 0."""
    positions, value_mask = after_last_token(torch.tensor([[False, False]]))
    assert positions.tolist() == [0] and value_mask.tolist() == [[True, False]]


def test_the_last_token_of_one():
    mask = torch.tensor([[True]])
    assert last_token(mask).tolist() == [0]
    assert after_last_token(mask)[0].tolist() == [0] and torch.equal(after_last_token(mask)[1], mask)


@pytest.mark.parametrize("function", [last_token, after_last_token])
@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (torch.tensor([[1, 1, 0]]), TypeError, "`mask` must be a boolean mask, got `torch.int64`"),
        (torch.tensor([[True, True], [False, True]]), ValueError, r"right-padded, got .* in row\(s\) \[1\]"),
        (torch.tensor([[True, False, True]]), ValueError, r"right-padded, got .* in row\(s\) \[0\]"),
    ],
)
def test_bad_masks_are_named(function, mask, error, match):
    with pytest.raises(error, match=match):
        function(mask)


def test_an_empty_completion_has_no_last_token():
    with pytest.raises(ValueError, match=r"`mask` has no token in row\(s\) \[1\]. Drop empty completions"):
        last_token(torch.tensor([[True, True], [False, False]]))


def test_token_rewards_worked_by_hand():
    """
    β = 1/2: penalties -1, 1 | -2, -2, -2 | -1. Scores 10, 20, 30 on the last tokens, or one further where there is
    room.
    """
    scores, kl = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([[2.0, -2.0, 9.0], [4.0, 4.0, 4.0], [2.0, 9.0, 9.0]])
    rewards = token_rewards(scores, kl, MASK, kl_coef=0.5)
    assert rewards.tolist() == [[-1, 11, 0], [-2, -2, 18], [29, 0, 0]]
    late = token_rewards(scores, kl, MASK, kl_coef=0.5, score_positions=after_last_token(MASK)[0])
    assert late.tolist() == [[-1, 1, 10], [-2, -2, 18], [-1, 30, 0]]


def test_rewards_without_a_penalty_are_the_scores():
    kl = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, MASK, kl_coef=0.0)
    assert torch.equal(rewards.sum(dim=1), torch.tensor([1.0, 2.0, 3.0])) and rewards.count_nonzero() == 3


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_padding_does_not_reach_the_rewards(poison):
    kl = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    rewards = token_rewards(torch.ones(3), kl, MASK, kl_coef=0.1)
    assert torch.equal(rewards, token_rewards(torch.ones(3), kl.masked_fill(~MASK, poison), MASK, kl_coef=0.1))


def test_a_score_that_is_nan_is_not_hidden():
    assert token_rewards(torch.tensor([math.nan]), torch.zeros(1, 2), MASK[1:2, :2], kl_coef=0.1)[0, 1].isnan()


def test_scores_of_another_precision_are_taken():
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
def test_rewards_of_a_wrong_shape_are_named(scores, kl, match):
    with pytest.raises(ValueError, match=match):
        token_rewards(scores, kl, MASK, kl_coef=0.1)
