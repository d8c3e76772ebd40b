import json
import math
from pathlib import Path

import pytest
import torch

from trl_rlp.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    kl_estimate,
    locate_after_last_token,
    masked_mean,
    masked_moments,
    policy_is_clipped,
    pooled_mean_and_variance,
    token_rewards,
    value_is_clipped,
    whiten,
)


ROLLOUTS = json.loads((Path(__file__).parent / "trl_1_12_rollouts.json").read_text())
FULL = torch.ones(1, 4, dtype=torch.bool)
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
POISONS = pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])


def draw_normal(*shape: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build_mask(lengths: list[int], longest: int) -> torch.Tensor:
    return torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]  # (batch, longest)


def whiten_by_own_moments(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    return whiten(values, mask, *pooled_mean_and_variance(masked_moments(values, mask)), shift_mean=shift_mean)


def test_masked_mean_matches_a_calculation_by_hand():
    """(1 + 2 + 4 + 5 + 6 + 7) / 6 = 25/6. With a count of 10, it is 5/2. Two of the six are above 5."""
    values = torch.tensor([[1.0, 2.0, 99.0], [4.0, 5.0, 6.0], [7.0, 99.0, 99.0]])
    assert masked_mean(values, MASK).item() == pytest.approx(25 / 6)
    assert masked_mean(values, MASK, count=10).item() == pytest.approx(5 / 2)
    assert masked_mean(values > 5, MASK).item() == pytest.approx(1 / 3)


def test_the_shares_of_micro_batches_add_up_to_the_mean_of_the_batch():
    [values] = draw_normal(3, 3)
    parts = sum(masked_mean(values[[row]], MASK[[row]], count=MASK.sum()) for row in range(3))
    assert parts.item() == pytest.approx(masked_mean(values, MASK).item())
    assert masked_mean(values, torch.zeros(3, 3, dtype=torch.bool), count=6).item() == 0


def test_the_mean_of_half_precision_values_is_computed_in_fp32():
    """The sum of 999 ones and a two is 1,001, which bf16 rounds to 1,000."""
    values = torch.tensor([[1.0] * 999 + [2.0]], dtype=torch.bfloat16)
    assert masked_mean(values, torch.ones(1, 1000, dtype=torch.bool)).item() == pytest.approx(1.001)


def test_moments_match_a_calculation_by_hand():
    """The values 1, 3, 5 have mean 3, squared differences 4 + 0 + 4, and variance 4 (unbiased) or 8/3 (biased)."""
    moments = masked_moments(torch.tensor([[1.0, 3.0, 5.0, 99.0]]), build_mask([3], 4))
    assert moments.tolist() == [3, 3, 8]
    assert [part.item() for part in pooled_mean_and_variance(moments)] == pytest.approx([3, 4])
    assert [part.item() for part in pooled_mean_and_variance(moments, unbiased=False)] == pytest.approx([3, 8 / 3])


@pytest.mark.parametrize("unbiased", [True, False])
def test_pooled_moments_of_processes_equal_those_of_the_whole_batch(unbiased):
    """The last part has no token, which is possible for a process."""
    [values] = draw_normal(6, 5)
    mask = build_mask([5, 1, 3, 2, 0, 0], 5)
    gathered = torch.stack([masked_moments(values[rows], mask[rows]) for rows in ([0], [1, 2, 3], [4, 5])])  # (3, 3)
    mean, variance = pooled_mean_and_variance(gathered, unbiased)
    assert mean.item() == pytest.approx(values[mask].mean().item())
    assert variance.item() == pytest.approx(values[mask].var(unbiased=unbiased).item())


def test_the_variance_is_precise_for_a_large_mean():
    """In fp32, the squares of 10,000 ± 0.01 differ from 1e8 by less than a rounding step of 8."""
    values = torch.tensor([[10_000.0, 10_000.015625] * 8])
    _, variance = pooled_mean_and_variance(masked_moments(values, torch.ones_like(values).bool()), unbiased=False)
    assert variance.item() == pytest.approx(0.0078125**2, rel=1e-3)


@pytest.mark.parametrize(
    ("lengths", "unbiased", "match"),
    [
        ([1], True, r"`mask` has 1 token\(s\), but a variance needs at least 2. Whiten over more completions"),
        ([0], True, r"`mask` has 0 token\(s\), but a variance needs at least 2"),
        ([0], False, r"`mask` has 0 token\(s\), but a variance needs at least 1"),
    ],
)
def test_the_variance_of_too_few_tokens_is_refused(lengths, unbiased, match):
    with pytest.raises(ValueError, match=match):
        pooled_mean_and_variance(masked_moments(torch.ones(1, 3), build_mask(lengths, 3)), unbiased)


def test_the_biased_variance_of_one_token_is_zero():
    moments = masked_moments(torch.full((1, 1), 7.0), torch.ones(1, 1, dtype=torch.bool))
    assert [part.item() for part in pooled_mean_and_variance(moments, unbiased=False)] == [7, 0]


def test_whitening_matches_a_calculation_by_hand():
    """1 and 3 with mean 2 and variance 4 give -1/2 and 1/2. With the mean kept, 3/2 and 5/2. Padding gives 0."""
    values, mask = torch.tensor([[1.0, 3.0, 99.0]]), build_mask([2], 3)
    mean, variance = torch.tensor(2.0), torch.tensor(4.0)
    assert whiten(values, mask, mean, variance)[0].tolist() == pytest.approx([-1 / 2, 1 / 2, 0])
    assert whiten(values, mask, mean, variance, shift_mean=False)[0].tolist() == pytest.approx([3 / 2, 5 / 2, 0])


def test_whitened_values_have_mean_0_and_standard_deviation_1():
    [values] = draw_normal(6, 5)
    mask = build_mask([5, 1, 3, 2, 4, 5], 5)
    result = whiten_by_own_moments(3 * values + 7, mask)
    assert result[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert result[mask].std().item() == pytest.approx(1)
    kept = whiten_by_own_moments(3 * values + 7, mask, shift_mean=False)
    assert kept[mask].mean().item() == pytest.approx((3 * values + 7)[mask].mean().item())
    assert torch.allclose(kept[mask] - kept[mask].mean(), result[mask])


def test_whitening_equal_values_gives_zeros():
    assert torch.equal(whiten_by_own_moments(torch.full((3, 3), 7.0), MASK), torch.zeros(3, 3))


def test_whitening_with_padding_equals_alpaca_farm():
    """AlpacaFarm: (x - mean) / (biased standard deviation + 1e-8), over the whole rollout."""
    [values] = draw_normal(8, 5)
    everywhere = torch.ones_like(values).bool()
    moments = pooled_mean_and_variance(masked_moments(values, everywhere), unbiased=False)
    expected = (values - values.mean()) / (values.std(unbiased=False) + 1e-8)
    assert torch.allclose(whiten(values, everywhere, *moments), expected, atol=1e-6, rtol=0)


def test_advantages_match_a_calculation_by_hand():
    """
    γ = λ = 1/2, values 2, 4, 8, rewards 1, 2, 4. δ: 1 + 4/2 - 2 = 1, 2 + 8/2 - 4 = 2, 4 + 0 - 8 = -4. A, backward from
    the end: -4, 2 - 4/4 = 1, 1 + 1/4 = 5/4. Returns: 13/4, 5, 4.
    """
    rewards, values = torch.tensor([[1.0, 2.0, 4.0, 99.0]]), torch.tensor([[2.0, 4.0, 8.0, 99.0]])
    advantages, returns = generalized_advantages(rewards, values, build_mask([3], 4), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[5 / 4, 1, -4, 0]]
    assert returns.tolist() == [[13 / 4, 5, 4, 0]]


def test_a_score_after_the_last_token_is_discounted_once_more():
    """
    γ = 1, λ = 1/2, one token with value 1, score 4. With the score at the token, A = 4 - 1 = 3. With the score after
    it, where the value is 2, δ = 2 - 1 and 4 - 2, so A = 1 + 2/2 = 2.
    """
    mask, values, scores = build_mask([1], 3), torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([4.0])
    at_token = token_rewards(scores, torch.zeros(1, 3), mask, kl_coef=0.0)
    assert generalized_advantages(at_token, values, mask, gamma=1.0, lam=0.5)[0].tolist() == [[3, 0, 0]]
    positions, value_mask = locate_after_last_token(mask)
    after_token = token_rewards(scores, torch.zeros(1, 3), mask, kl_coef=0.0, score_positions=positions)
    advantages, returns = generalized_advantages(after_token, values, value_mask, gamma=1.0, lam=0.5)
    assert advantages.tolist() == [[2, 2, 0]] and returns.tolist() == [[3, 4, 0]]


def test_lambda_1_gives_the_future_rewards_minus_the_value():
    rewards, values = draw_normal(4, 6, count=2)
    mask = build_mask([6, 1, 4, 3], 6)
    rewards_to_go = rewards.masked_fill(~mask, 0).flip(1).cumsum(1).flip(1)  # (4, 6)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.allclose(advantages, (rewards_to_go - values).masked_fill(~mask, 0))
    assert torch.allclose(returns, rewards_to_go)


def test_lambda_0_gives_the_one_step_error():
    rewards, values = draw_normal(4, 6, count=2)
    mask = build_mask([6, 1, 4, 3], 6)
    next_values = torch.cat([values.masked_fill(~mask, 0)[:, 1:], torch.zeros(4, 1)], dim=1)  # (4, 6)
    advantages, _ = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.0)
    assert torch.allclose(advantages, (rewards + 0.9 * next_values - values).masked_fill(~mask, 0))


def test_advantages_equal_the_sum_in_the_paper():
    """Eq. 16, summed term by term."""
    rewards, values = draw_normal(1, 4, count=2)
    padded = [*values[0].tolist(), 0.0]
    errors = [rewards[0, t].item() + 0.9 * padded[t + 1] - padded[t] for t in range(4)]
    expected = [sum((0.9 * 0.8) ** (k - t) * errors[k] for k in range(t, 4)) for t in range(4)]
    advantages, _ = generalized_advantages(rewards, values, FULL, gamma=0.9, lam=0.8)
    assert advantages[0].tolist() == pytest.approx(expected)


def test_a_perfect_critic_gives_advantages_of_0():
    """The rewards are 1, 1, 1 and the values 3, 2, 1."""
    values = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    advantages, returns = generalized_advantages(torch.ones(1, 4), values, build_mask([3], 4), gamma=1.0, lam=0.7)
    assert torch.equal(advantages, torch.zeros(1, 4)) and torch.equal(returns, values)


def test_advantage_of_a_completion_of_one_token():
    one = torch.ones(1, 1)
    advantages, returns = generalized_advantages(5 * one, 2 * one, one.bool(), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[3]] and returns.tolist() == [[5]]


def test_the_other_completions_of_a_batch_and_their_order_do_not_matter():
    rewards, values = draw_normal(4, 6, count=2)
    mask, order = build_mask([6, 1, 4, 3], 6), [2, 0, 3, 1]
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.8)
    shuffled = generalized_advantages(rewards[order], values[order], mask[order], gamma=0.9, lam=0.8)
    assert torch.equal(shuffled[0], advantages[order]) and torch.equal(shuffled[1], returns[order])
    alone = generalized_advantages(rewards[2:3, :4], values[2:3, :4], mask[2:3, :4], gamma=0.9, lam=0.8)
    assert torch.equal(alone[0], advantages[2:3, :4]) and torch.equal(alone[1], returns[2:3, :4])


@POISONS
def test_padding_changes_no_statistic_and_no_advantage(poison):
    rewards, values = clean = draw_normal(3, 3, count=2)
    poisoned = clean.masked_fill(~MASK, poison)
    for result, expected in zip(
        generalized_advantages(*poisoned, MASK, gamma=0.9, lam=0.8),
        generalized_advantages(rewards, values, MASK, gamma=0.9, lam=0.8),
        strict=True,
    ):
        assert torch.equal(result, expected) and result[~MASK].eq(0).all()
    assert torch.equal(whiten_by_own_moments(poisoned[0], MASK), whiten_by_own_moments(rewards, MASK))
    assert torch.equal(masked_mean(poisoned[0], MASK), masked_mean(rewards, MASK))


def test_no_gradient_flows_through_advantages():
    values = torch.zeros(1, 4, requires_grad=True)
    assert not any(part.requires_grad for part in generalized_advantages(torch.ones(1, 4), values, FULL, 1.0, 0.95))


def test_advantages_of_half_precision_values_are_computed_in_fp32():
    values = torch.zeros(1, 4, dtype=torch.bfloat16)
    assert generalized_advantages(values, values, FULL, 1.0, 0.95)[0].dtype == torch.float32


RATIOS = [3 / 2, 3 / 2, 1 / 2, 1 / 2]
SIGNS = [2.0, -2.0, 2.0, -2.0]


def test_policy_loss_matches_a_calculation_by_hand():
    """
    Advantages ±2, ε = 0.2. Ratio 3/2: max(-3, -2.4) is clipped, max(3, 2.4) is not. Ratio 1/2: max(-1, -1.6) is not
    clipped, max(1, 1.6) is. Half of the tokens are clipped.
    """
    log_probs, advantages = torch.tensor([RATIOS]).log(), torch.tensor([SIGNS])
    inputs = (log_probs, torch.zeros(1, 4), advantages, FULL, 0.2)
    assert clipped_policy_loss(*inputs)[0].tolist() == pytest.approx([-2.4, 3, -1, 1.6])
    assert policy_is_clipped(*inputs).tolist() == [[True, False, False, True]]
    assert masked_mean(policy_is_clipped(*inputs), FULL).item() == 1 / 2


def test_the_policy_loss_has_no_gradient_where_it_is_clipped():
    """Elsewhere it is d(-A e^x)/dx = -A e^x, here up to the sign 2 * 3/2 = 3 and -2 * 1/2 = -1."""
    log_probs = torch.tensor([RATIOS]).log().requires_grad_()
    clipped_policy_loss(log_probs, torch.zeros(1, 4), torch.tensor([SIGNS]), FULL, 0.2).sum().backward()
    assert log_probs.grad[0].tolist() == pytest.approx([0, 3, -1, 0])


def test_before_the_first_optimizer_step_the_gradient_is_minus_the_advantage():
    old_log_probs, advantages = draw_normal(1, 4, count=2)
    log_probs = old_log_probs.clone().requires_grad_()
    loss = clipped_policy_loss(log_probs, old_log_probs, advantages, FULL, 0.2)
    loss.sum().backward()
    assert torch.equal(loss.detach(), -advantages)
    assert torch.allclose(log_probs.grad, -advantages)
    assert not policy_is_clipped(log_probs, old_log_probs, advantages, FULL, 0.2).any()


def test_value_loss_matches_a_calculation_by_hand():
    """
    Old value 0, c = 1. Value 3, return 4: max(1, (1 - 4)²) / 2 = 9/2, clipped. Value 3, return -1: max(16, 4) / 2 = 8.
    Value -3, return -4: like the first, with the signs reversed. Value 1/2, return 1: 1/8. Without clipping, the
    losses are 1/2, 8, 1/2, 1/8.
    """
    values, returns = torch.tensor([[3.0, 3.0, -3.0, 0.5]]), torch.tensor([[4.0, -1.0, -4.0, 1.0]])
    inputs = (values, torch.zeros(1, 4), returns, FULL)
    assert clipped_value_loss(*inputs, 1.0).tolist() == [[9 / 2, 8, 9 / 2, 1 / 8]]
    assert value_is_clipped(*inputs, 1.0).tolist() == [[True, False, True, False]]
    assert clipped_value_loss(*inputs, None).tolist() == [[1 / 2, 8, 1 / 2, 1 / 8]]
    assert not value_is_clipped(*inputs, None).any()


@pytest.mark.parametrize(("cliprange_value", "expected"), [(1.0, [0, 4, 0, -0.5]), (None, [-1, 4, 1, -0.5])])
def test_the_value_loss_has_no_gradient_where_it_is_clipped(cliprange_value, expected):
    """Elsewhere the derivative of (V - R)² / 2 is V - R."""
    values = torch.tensor([[3.0, 3.0, -3.0, 0.5]], requires_grad=True)
    returns = torch.tensor([[4.0, -1.0, -4.0, 1.0]])
    clipped_value_loss(values, torch.zeros(1, 4), returns, FULL, cliprange_value).sum().backward()
    assert values.grad[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
def test_gradients_match_finite_differences(loss):
    now, old, target = draw_normal(3, 3, count=3)
    now.requires_grad_()
    assert torch.autograd.gradcheck(lambda now: loss(now, old, target, MASK, 0.2), now)


@POISONS
@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
def test_padding_changes_neither_a_loss_nor_its_gradient(loss, poison):
    gradients, losses = [], []
    for inputs in (draw_normal(3, 3, count=3), draw_normal(3, 3, count=3).masked_fill(~MASK, poison)):
        now, old, target = inputs
        now.requires_grad_()
        losses.append(loss(now, old, target, MASK, 0.2))
        masked_mean(losses[-1], MASK).backward()
        gradients.append(now.grad)
    assert torch.equal(*losses) and torch.equal(*gradients)
    assert losses[1][~MASK].eq(0).all() and gradients[1][~MASK].eq(0).all()


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
def test_nan_inside_the_mask_gives_a_nan_loss(loss):
    now, old, target = draw_normal(3, 3, count=3)
    now[1, 1] = math.nan
    assert loss(now, old, target, MASK, 0.2).isnan().nonzero().tolist() == [[1, 1]]


TWO, THREE = torch.zeros(3, 2), torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: masked_mean(TWO, MASK), r"`values` \(3, 2\), `mask` \(3, 3\)"),
        (lambda: masked_moments(TWO, MASK), r"`values` \(3, 2\), `mask` \(3, 3\)"),
        (lambda: masked_mean(THREE, ~MASK & MASK), "`mask` has no token, so there is no mean. Pass `count`"),
        (lambda: generalized_advantages(TWO, THREE, MASK, 1.0, 1.0), r"`rewards` \(3, 2\), `values` \(3, 3\)"),
        (lambda: generalized_advantages(THREE, THREE, ~MASK, 1.0, 1.0), r"`mask` must be right-padded.* \[0, 2\]"),
        (lambda: clipped_policy_loss(THREE, THREE, torch.zeros(3), MASK, 0.2), r"`advantages` \(3,\)"),
        (lambda: policy_is_clipped(THREE, TWO, THREE, MASK, 0.2), r"`old_log_probs` \(3, 2\)"),
        (lambda: clipped_value_loss(THREE, THREE, torch.zeros(3, 1), MASK, 0.2), r"`returns` \(3, 1\)"),
        (lambda: value_is_clipped(THREE, TWO, THREE, MASK, 0.2), r"`old_values` \(3, 2\)"),
    ],
)
def test_errors_name_the_invalid_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_mask_that_is_not_boolean_is_refused():
    with pytest.raises(TypeError, match="`mask` must be a boolean mask, got `torch.int64`"):
        generalized_advantages(THREE, THREE, MASK.long(), 1.0, 1.0)


def recompute_rollout(case: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Computes with our functions what TRL 1.12 computes from a rollout and from one forward pass on it."""
    inputs = {name: torch.tensor(values, dtype=dtype) for name, values in case["inputs"].items()}
    old_log_probs, old_values = inputs["log_probs"], inputs["values"]
    mask = (inputs["completion_ids"] != case["pad_token_id"]).cumprod(dim=1).bool()  # (batch, length)
    positions, value_mask = locate_after_last_token(mask)
    kl = kl_estimate(old_log_probs, inputs["ref_log_probs"], case["kl_estimator"])
    rewards = token_rewards(inputs["scores"], kl, mask, case["kl_coef"], positions)
    if case["whiten_rewards"]:
        rewards = whiten_by_own_moments(rewards, value_mask, shift_mean=False)
    advantages, returns = generalized_advantages(rewards, old_values, value_mask, case["gamma"], case["lam"])
    advantages = whiten_by_own_moments(advantages, mask)
    log_probs, values = inputs["new_log_probs"].requires_grad_(), inputs["new_values"].requires_grad_()
    policy = (log_probs, old_log_probs, advantages, mask, case["cliprange"])
    critic = (values, old_values, returns, value_mask, case["cliprange_value"])
    policy_loss = masked_mean(clipped_policy_loss(*policy), mask)
    value_loss = masked_mean(clipped_value_loss(*critic), value_mask)
    (policy_loss + case["vf_coef"] * value_loss).backward()
    return {
        "rewards": rewards,
        "advantages": advantages,
        "returns": returns,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "policy_clip_fraction": masked_mean(policy_is_clipped(*policy), mask),
        "value_clip_fraction": masked_mean(value_is_clipped(*critic), value_mask),
        "approximate_kl": masked_mean(kl_estimate(log_probs, old_log_probs, "k2"), mask, count=mask.numel()),
        "mean_kl": masked_mean(kl, mask, count=len(mask)),
        "policy_gradient": log_probs.grad,
        "value_gradient": values.grad,
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", ROLLOUTS, ids=range(len(ROLLOUTS)))
def test_a_rollout_has_the_numbers_of_trl_1_12(case, dtype, tolerance):
    """
    The numbers were recorded from TRL 1.12.0 (`trl.experimental.ppo.PPOTrainer.train`, with its `truncate_response`,
    `masked_mean`, `masked_var` and `masked_whiten`). Two parts of its source code were extracted at run time and
    executed in fp64 on random tensors with four decimals: from the truncation of the responses to the whitened
    advantages, and from the new log-probabilities to the loss and its statistics.

    There are 2 x 2 x 2 cases: the pad token is EOS or not, rewards are whitened or not, and the KL estimator is k1
    (with γ = 1, λ = 0.95, β = 0.05) or k3 (with 0.98, 0.9, 0.2). Each case has a row without EOS, a row of EOS alone,
    and a row with EOS at the very end.

    If the pad token is EOS, the mask excludes EOS. The approximate KL is a mean that includes padding. The KL is a sum
    over tokens.
    """
    results = recompute_rollout(case, dtype)
    assert set(results) == set(case["outputs"])
    for name, recorded in case["outputs"].items():
        expected = torch.tensor(recorded, dtype=dtype)
        close = {"rtol": 0, "atol": 1e-7 if "fraction" in name else tolerance}
        assert torch.allclose(results[name].to(dtype), expected, **close), name


def test_the_recorded_rollouts_cover_the_branches_of_trl_1_12():
    settings = {(case["pad_token_id"] == case["eos_token_id"], case["whiten_rewards"]) for case in ROLLOUTS}
    assert settings == {(False, False), (False, True), (True, False), (True, True)}
    assert {case["kl_estimator"] for case in ROLLOUTS} == {"k1", "k3"}
    fractions = [case["outputs"][f"{name}_clip_fraction"] for case in ROLLOUTS for name in ("policy", "value")]
    assert all(0 < fraction < 1 for fraction in fractions)
