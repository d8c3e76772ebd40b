import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy, normalize

from trl_rlp.losses import (
    LOWER_BOUNDS,
    contrastive_loss,
    gaussian_kl,
    infomax_loss,
    mib_loss,
    mvi_loss,
    nce_lower_bound,
    product_pairs,
    symmetric_kl,
)


LN2 = math.log(2)


def draw_gaussians(batch: int = 4, latent: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(4, batch, latent, dtype=torch.float64, generator=generator)
    return draws[0], draws[1].exp(), draws[2], draws[3].exp()


def test_pairs_of_the_same_prompt_are_not_product_pairs():
    expected = [
        [False, True, False, True],
        [True, False, True, True],
        [False, True, False, True],
        [True, True, True, False],
    ]
    assert product_pairs(torch.tensor([5, -1, 5, 9])).tolist() == expected


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([4, 4, 4], "`prompt_indices` has fewer than two distinct prompts in a batch of 3"),
        ([4], "fewer than two distinct prompts in a batch of 1"),
        ([], "fewer than two distinct prompts in a batch of 0"),
        ([[1, 2]], r"`prompt_indices` must have shape \(batch,\), got \(1, 2\)"),
    ],
)
def test_product_pairs_need_two_prompts(ids, match):
    with pytest.raises(ValueError, match=match):
        product_pairs(torch.tensor(ids))


def test_gaussian_kl_matches_a_calculation_by_hand():
    """
    KL(N(0, 1) || N(1, 2)) = ln 2 + (1 + 1) / 8 - 1/2 = ln 2 - 1/4.
    KL(N(1, 2) || N(0, 1)) = -ln 2 + (4 + 1) / 2 - 1/2 = 2 - ln 2. Their mean is 7/8.
    """
    narrow, wide = (torch.tensor([[0.0]]), torch.tensor([[1.0]])), (torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert gaussian_kl(*narrow, *wide).tolist() == pytest.approx([LN2 - 1 / 4])
    assert gaussian_kl(*wide, *narrow).tolist() == pytest.approx([2 - LN2])
    assert symmetric_kl(*narrow, *wide).tolist() == pytest.approx([7 / 8])


def test_gaussian_kl_equals_that_of_torch_and_is_reduced_over_the_latent():
    mean_1, deviation_1, mean_2, deviation_2 = views = draw_gaussians()
    expected = kl_divergence(Normal(mean_1, deviation_1), Normal(mean_2, deviation_2))  # (batch, latent)
    assert torch.allclose(gaussian_kl(*views), expected.sum(dim=1))
    assert torch.allclose(gaussian_kl(*views, reduction="mean"), expected.mean(dim=1))
    assert torch.allclose(gaussian_kl(*views), 3 * gaussian_kl(*views, reduction="mean"))


def test_gaussian_kl_is_0_for_equal_gaussians_and_never_negative_for_close_ones():
    mean, deviation = torch.randn(64, 8), torch.rand(64, 8) + 0.1
    assert torch.equal(gaussian_kl(mean, deviation, mean, deviation), torch.zeros(64))
    assert (gaussian_kl(mean, deviation, mean, deviation * (1 + 1e-6)) >= 0).all()


def test_the_order_does_not_change_the_symmetric_kl():
    mean_1, deviation_1, mean_2, deviation_2 = draw_gaussians()
    forward = symmetric_kl(mean_1, deviation_1, mean_2, deviation_2)
    assert torch.allclose(forward, symmetric_kl(mean_2, deviation_2, mean_1, deviation_1))
    assert not torch.allclose(forward, gaussian_kl(mean_1, deviation_1, mean_2, deviation_2))


def test_gaussian_kl_gradients_match_finite_differences():
    views = [view.requires_grad_() for view in draw_gaussians()]
    assert torch.autograd.gradcheck(gaussian_kl, views)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match='`reduction` must be "sum" or "mean", got \'none\''):
        gaussian_kl(*draw_gaussians(), reduction="none")


def test_mib_loss_matches_a_calculation_by_hand():
    """
    With all scores 0, -I_JSD = 2 ln 2. Both rows are N(0, 1) and N(1, 2) in two dimensions, so D_SKL is 7/4 summed and
    7/8 averaged.
    """
    zeros, ones = torch.zeros(2, 2), torch.ones(2, 2)
    views = (zeros, ones, ones, 2 * ones)
    assert mib_loss(zeros, *views).item() == pytest.approx(2 * LN2 + 7 / 4)
    assert mib_loss(zeros, *views, kl_weight=0.5).item() == pytest.approx(2 * LN2 + 7 / 8)
    assert mib_loss(zeros, *views, kl_reduction="mean").item() == pytest.approx(2 * LN2 + 7 / 8)
    assert mib_loss(zeros, *views, estimator="nce").item() == pytest.approx(7 / 4)


@pytest.mark.parametrize("estimator", LOWER_BOUNDS)
def test_mib_without_kl_equals_mvi(estimator):
    scores = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = mvi_loss(scores, estimator=estimator)
    assert torch.equal(mib_loss(scores, *draw_gaussians(), estimator=estimator, kl_weight=0.0), expected)
    assert torch.equal(expected, -LOWER_BOUNDS[estimator](scores))


@pytest.mark.parametrize("estimator", LOWER_BOUNDS)
def test_infomax_is_the_mean_of_both_views(estimator):
    scores_1, scores_2 = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    bound = LOWER_BOUNDS[estimator]
    loss = infomax_loss(scores_1, scores_2, estimator=estimator)
    assert loss.item() == pytest.approx(-(bound(scores_1) + bound(scores_2)).item() / 2)


def test_every_loss_uses_the_mask():
    product = product_pairs(torch.tensor([0, 0, 1, 2]))
    mean_1, deviation_1, mean_2, deviation_2 = views = draw_gaussians()
    scores = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    poisoned = scores.clone()
    poisoned[0, 1] = poisoned[1, 0] = 50.0
    assert torch.equal(mib_loss(scores, *views, product), mib_loss(poisoned, *views, product))
    assert torch.equal(mvi_loss(scores, product), mvi_loss(poisoned, product))
    assert torch.equal(infomax_loss(scores, scores, product), infomax_loss(poisoned, poisoned, product))
    assert contrastive_loss(mean_1, mean_2, product) != contrastive_loss(mean_1, mean_2)


def test_contrastive_loss_matches_a_calculation_by_hand():
    """
    The cosines are [[1, 0], [0, 1]], so at temperature 1 every row and column gives ln(e / ((e + 1) / 2)). The lengths
    of the vectors do not matter.
    """
    mean_1, mean_2 = torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([[9.0, 0.0], [0.0, 5.0]])
    expected = -math.log(2 * math.e / (math.e + 1))
    assert contrastive_loss(mean_1, mean_2, temperature=1.0).item() == pytest.approx(expected)


def test_contrastive_loss_is_the_mean_cross_entropy_of_both_directions_minus_chance():
    mean_1, _, mean_2, _ = draw_gaussians(batch=5)
    cosines = normalize(mean_1) @ normalize(mean_2).T / 0.1
    partners = torch.arange(5)
    expected = (cross_entropy(cosines, partners) + cross_entropy(cosines.T, partners)) / 2 - math.log(5)
    assert contrastive_loss(mean_1, mean_2).item() == pytest.approx(expected.item())
    assert contrastive_loss(mean_1, mean_2).item() == pytest.approx(-nce_lower_bound(cosines).item())


def test_completions_of_the_same_prompt_are_not_negatives():
    """The first two rows have the same prompt and equal μ. As negatives they cost ln 2 per row, masked 0."""
    mean = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    product = product_pairs(torch.tensor([7, 7, 8]))
    masked = contrastive_loss(mean, mean, product, temperature=0.01)
    unmasked = contrastive_loss(mean, mean, temperature=0.01)
    assert masked.item() == pytest.approx(-(2 * math.log(2) + math.log(3)) / 3)
    assert unmasked.item() == pytest.approx(-math.log(3) + 2 * math.log(2) / 3, rel=1e-5)


def test_a_step_on_the_contrastive_loss_moves_partners_closer():
    mean_1, _, mean_2, _ = draw_gaussians(batch=8)
    mean_1.requires_grad_()
    contrastive_loss(mean_1, mean_2).backward()
    closer = mean_1.detach() - 0.1 * mean_1.grad
    cosine = torch.cosine_similarity
    assert cosine(closer, mean_2).mean() > cosine(mean_1.detach(), mean_2).mean()


def test_nan_gives_a_nan_loss():
    mean_1, deviation_1, mean_2, deviation_2 = draw_gaussians()
    mean_1[0, 0] = math.nan
    assert contrastive_loss(mean_1, mean_2).isnan()
    assert mib_loss(torch.zeros(4, 4), mean_1, deviation_1, mean_2, deviation_2).isnan()
