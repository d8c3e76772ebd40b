import math

import pytest
import torch

from trl_rlp.losses import LOWER_BOUNDS, ZERO_INFORMATION, jsd_lower_bound, nce_lower_bound, nwj_lower_bound


LN2, LN3 = math.log(2), math.log(3)
SCORES = [[LN3, -LN3], [0.0, LN3]]


every_bound = pytest.mark.parametrize("name", LOWER_BOUNDS)


def score_correlated_gaussians(mi: float, size: int, dimensions: int = 4, seed: int = 0) -> torch.Tensor:
    """Scores of the perfect critic, ln p(x_i, y_j) / (p(x_i) p(y_j)), with MI = -dimensions / 2 ln(1 - rho^2)."""
    generator = torch.Generator().manual_seed(seed)
    rho = math.sqrt(1 - math.exp(-2 * mi / dimensions))
    x = torch.randn(size, dimensions, dtype=torch.float64, generator=generator)
    noise = torch.randn(size, dimensions, dtype=torch.float64, generator=generator)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :]  # (size, size)
    return mi - (rho**2 * squares - 2 * rho * x @ y.T) / (2 * (1 - rho**2))


def test_jsd_matches_a_calculation_by_hand():
    """Joint pairs: both ln 3, -softplus(-ln 3) = -ln(4/3). Product: softplus(-ln 3) = ln(4/3), softplus(0) = ln 2."""
    expected = -math.log(4 / 3) - (math.log(4 / 3) + LN2) / 2
    assert jsd_lower_bound(torch.tensor(SCORES)).item() == pytest.approx(expected)


def test_nce_matches_a_calculation_by_hand():
    """exp(scores) = [[3, 1/3], [1, 3]]. Rows: ln(3 / (5/3)) = ln(9/5), ln(3 / 2). Columns: ln(3 / 2), ln(9/5)."""
    expected = (math.log(9 / 5) + math.log(3 / 2)) / 2
    assert nce_lower_bound(torch.tensor(SCORES)).item() == pytest.approx(expected)


def test_nwj_matches_a_calculation_by_hand():
    """Joint pairs: ln 3. Product pairs: (1/3 + 1) / 2 / e = 2 / (3 e)."""
    assert nwj_lower_bound(torch.tensor(SCORES)).item() == pytest.approx(LN3 - 2 / (3 * math.e))


def test_bounds_with_a_mask_match_a_calculation_by_hand():
    """
    The first two of three rows have the same prompt, so (0, 1) and (1, 0) are masked. For the other pairs, exp(scores)
    is [[2, ., 1], [., 4, 1], [1, 1, 8]].

    nce, rows: 2 / (3/2) = 4/3, 4 / (5/2) = 8/5, 8 / (10/3) = 12/5. The columns are the same.
    nwj: ln(2 * 4 * 8) / 3 = 2 ln 2, minus 1/e. jsd: the product term is ln 2.
    """
    product = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
    scores = torch.tensor([[2.0, 77.0, 1.0], [55.0, 4.0, 1.0], [1.0, 1.0, 8.0]]).log()
    nce = (math.log(4 / 3) + math.log(8 / 5) + math.log(12 / 5)) / 3
    jsd = -(math.log(3 / 2) + math.log(5 / 4) + math.log(9 / 8)) / 3 - LN2
    assert nce_lower_bound(scores, product).item() == pytest.approx(nce)
    assert nwj_lower_bound(scores, product).item() == pytest.approx(2 * LN2 - 1 / math.e)
    assert jsd_lower_bound(scores, product).item() == pytest.approx(jsd)


def test_a_row_without_product_pairs_contributes_0_to_nce():
    """Row 0: ln(3 / (5/3)). Row 1 has only its partner: 0. Column 0: 0. Column 1: ln(3 / (5/3))."""
    product = torch.tensor([[False, True], [False, False]])
    assert nce_lower_bound(torch.tensor(SCORES), product).item() == pytest.approx(math.log(9 / 5) / 2)


@every_bound
def test_masked_pairs_do_not_change_the_bound_and_get_no_gradient(name):
    product = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
    clean = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    for poison in (1e4, math.nan, math.inf):
        scores = clean.clone()
        scores[0, 1] = poison
        scores.requires_grad_()
        value = LOWER_BOUNDS[name](scores, product)
        value.backward()
        assert torch.equal(value.detach(), LOWER_BOUNDS[name](clean, product))
        assert torch.equal(scores.grad[~product & ~torch.eye(3, dtype=torch.bool)], torch.zeros(2))
        assert scores.grad.isfinite().all()


@every_bound
def test_the_default_mask_covers_all_pairs_off_the_diagonal(name):
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LOWER_BOUNDS[name](scores), LOWER_BOUNDS[name](scores, ~torch.eye(5, dtype=torch.bool)))


@every_bound
def test_the_best_constant_critic_gives_the_zero_information_value(name):
    """The best constants are 0 for jsd and 1 for nwj. A constant does not change nce."""
    values = [LOWER_BOUNDS[name](torch.full((4, 4), constant / 10)).item() for constant in range(-30, 31)]
    assert max(values) == pytest.approx(ZERO_INFORMATION[name], abs=1e-6)


@every_bound
def test_joint_scores_have_positive_and_product_scores_negative_gradients(name):
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    LOWER_BOUNDS[name](scores).backward()
    joint = torch.eye(4, dtype=torch.bool)
    assert (scores.grad[joint] > 0).all()
    assert (scores.grad[~joint] < 0).all()


@every_bound
def test_gradients_match_finite_differences(name):
    scores = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(LOWER_BOUNDS[name], scores)


@every_bound
def test_the_order_of_the_batch_and_of_the_views_does_not_matter(name):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    product = ~torch.eye(6, dtype=torch.bool)
    product[0, 1] = product[1, 0] = False
    order = torch.randperm(6, generator=generator)
    expected = LOWER_BOUNDS[name](scores, product).item()
    assert LOWER_BOUNDS[name](scores[order][:, order], product[order][:, order]).item() == pytest.approx(expected)
    assert LOWER_BOUNDS[name](scores.T, product.T).item() == pytest.approx(expected)


@every_bound
@pytest.mark.parametrize("position", [(1, 1), (0, 2)], ids=["joint", "product"])
def test_a_nan_score_gives_nan(name, position):
    scores = torch.zeros(3, 3)
    scores[position] = math.nan
    assert LOWER_BOUNDS[name](scores).isnan()


@every_bound
def test_an_infinite_product_score_gives_minus_infinity(name):
    scores = torch.zeros(3, 3)
    scores[0, 2] = math.inf
    assert LOWER_BOUNDS[name](scores).item() == -math.inf


@pytest.mark.parametrize(("name", "ceiling"), [("jsd", 0.0), ("nce", math.log(3)), ("nwj", 1e4)])
def test_huge_scores_stay_finite(name, ceiling):
    scores = 1e4 * (2 * torch.eye(3) - 1)
    assert LOWER_BOUNDS[name](scores).item() == pytest.approx(ceiling)


@pytest.mark.parametrize(("name", "value"), [("jsd", -2e4), ("nce", -2e4 + math.log(1.5)), ("nwj", -math.inf)])
def test_huge_wrong_scores_stay_finite_except_in_nwj(name, value):
    """nce: a row gives -1e4 - (1e4 + ln 2) + ln 3. nwj: e^9999 is out of range."""
    scores = -1e4 * (2 * torch.eye(3) - 1)
    assert LOWER_BOUNDS[name](scores).item() == pytest.approx(value)


@pytest.mark.parametrize("mi", [0.0, 0.5, 1.0, 2.0])
def test_nwj_with_the_perfect_critic_estimates_the_mutual_information(mi):
    """The best scores are 1 + the log density ratio."""
    scores = score_correlated_gaussians(mi, size=2000)
    assert nwj_lower_bound(scores + 1).item() == pytest.approx(mi, abs=0.1)
    assert nwj_lower_bound(scores + 1.5) < nwj_lower_bound(scores + 1) > nwj_lower_bound(scores + 0.5)


@pytest.mark.parametrize("mi", [0.0, 0.5, 1.0, 2.0])
def test_nce_with_the_perfect_critic_and_a_large_batch_estimates_the_mutual_information(mi):
    assert nce_lower_bound(score_correlated_gaussians(mi, size=2000)).item() == pytest.approx(mi, abs=0.1)


def test_nce_is_at_most_the_logarithm_of_the_batch_size():
    value = nce_lower_bound(score_correlated_gaussians(mi=12.0, size=16)).item()
    assert value <= math.log(16) + 1e-12
    assert value == pytest.approx(math.log(16), abs=0.05)


def test_jsd_with_the_perfect_critic_grows_from_its_zero_information_value_to_0():
    values = [jsd_lower_bound(score_correlated_gaussians(mi, size=1000)).item() for mi in (0.0, 0.5, 2.0, 8.0)]
    assert values[0] == pytest.approx(-2 * LN2)
    assert values == sorted(values)
    assert -0.1 < values[-1] < 0


def test_nwj_with_a_critic_trained_on_jsd_estimates_the_mutual_information():
    """The critic a T + b starts at a = 0.3, b = 1. Training on jsd gives a = 1, b = 0, the log density ratio."""
    scores = score_correlated_gaussians(mi=1.0, size=600)
    slope, offset = torch.tensor(0.3, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([slope, offset], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (-jsd_lower_bound(slope * scores + offset)).backward()
        optimizer.step()
    assert slope.item() == pytest.approx(1.0, abs=0.1)
    assert offset.item() == pytest.approx(0.0, abs=0.1)
    assert nwj_lower_bound(slope * scores + offset + 1).item() == pytest.approx(1.0, abs=0.1)


@every_bound
def test_the_smallest_batch_is_two(name):
    assert LOWER_BOUNDS[name](torch.zeros(2, 2)).isfinite()
    with pytest.raises(ValueError, match="`product` has no product pair in a batch of 1. Pass at least two"):
        LOWER_BOUNDS[name](torch.zeros(1, 1))


@every_bound
@pytest.mark.parametrize(
    ("scores", "product", "error", "match"),
    [
        (torch.zeros(2, 3), None, ValueError, r"`scores` must be a square matrix, got shape \(2, 3\)"),
        (torch.zeros(4), None, ValueError, r"`scores` must be a square matrix, got shape \(4,\)"),
        (torch.zeros(2, 2), torch.ones(2, 2), TypeError, "`product` must be a boolean mask, got `torch.float32`"),
        (torch.zeros(2, 2), torch.ones(3, 3).bool(), ValueError, r"shape of `scores`, \(2, 2\), got \(3, 3\)"),
        (torch.zeros(2, 2), torch.ones(2, 2).bool(), ValueError, "`product` marks joint pairs"),
        (torch.zeros(2, 2), torch.zeros(2, 2).bool(), ValueError, "no product pair in a batch of 2"),
    ],
)
def test_errors_name_the_invalid_input(name, scores, product, error, match):
    with pytest.raises(error, match=match):
        LOWER_BOUNDS[name](scores, product)


def test_every_bound_has_a_zero_information_value():
    assert ZERO_INFORMATION == {"jsd": pytest.approx(-1.386294), "nce": 0, "nwj": 0}
    assert list(ZERO_INFORMATION) == list(LOWER_BOUNDS)
