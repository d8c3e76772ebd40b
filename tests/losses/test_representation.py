import copy
import math

import pytest
import torch

from trl_rlp.losses import (
    LOSSES,
    LOWER_BOUNDS,
    RECIPES,
    ZERO_INFORMATION,
    RepresentationLoss,
    contrastive_loss,
    gaussian_kl,
)


BATCH, HIDDEN, LATENT = 6, 16, 8
IDS = torch.arange(BATCH)
KEYS = {
    "mib": {"loss", "mi", "mi_zero", "kl_12", "kl_21", "mean_spread", "deviation"},
    "mvi": {"loss", "mi", "mi_zero", "mean_spread", "deviation"},
    "infomax": {"loss", "mi", "mi_zero", "mean_spread", "deviation"},
    "cl": {"loss", "mi", "mi_zero", "mean_spread"},
}


def every_loss(function):
    for name, values in (("loss", LOSSES), ("recipe", RECIPES)):
        function = pytest.mark.parametrize(name, values)(function)
    return function


def build_loss(**settings) -> RepresentationLoss:
    torch.manual_seed(0)
    return RepresentationLoss(HIDDEN, latent_size=LATENT, **settings)


def draw_hidden_states(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, BATCH, HIDDEN, generator=generator).to(dtype))


def run_loss(module: RepresentationLoss, *hidden: torch.Tensor, ids=IDS, seed=2, **arguments):
    torch.manual_seed(seed)
    return module(*(hidden or draw_hidden_states()), ids, **arguments)


@every_loss
@pytest.mark.parametrize("estimator", LOWER_BOUNDS)
def test_the_report_has_the_keys_of_the_loss_and_only_the_loss_has_a_gradient(loss, recipe, estimator):
    report = run_loss(build_loss(loss=loss, recipe=recipe, estimator=estimator))
    assert loss in KEYS, f"Add the keys that the loss {loss!r} reports to `KEYS`."
    assert set(report) == KEYS[loss]
    for name, value in report.items():
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
        assert value.requires_grad == (name == "loss")
    assert report["mi_zero"].item() == pytest.approx(ZERO_INFORMATION["nce" if loss == "cl" else estimator])


@every_loss
@pytest.mark.parametrize("estimator", LOWER_BOUNDS)
def test_all_parameters_and_both_hidden_states_get_a_gradient(loss, recipe, estimator):
    module = build_loss(loss=loss, recipe=recipe, estimator=estimator)
    hidden = [view.requires_grad_() for view in draw_hidden_states()]
    run_loss(module, *hidden)["loss"].backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient, so DDP would fail"
    for view in hidden:
        assert (view.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("estimator", LOWER_BOUNDS)
def test_mib_is_minus_the_information_plus_the_weighted_symmetric_kl(recipe, estimator):
    for weight in (None, 0.0, 0.3):
        report = run_loss(build_loss(recipe=recipe, estimator=estimator, kl_weight=weight))
        expected_weight = {"paper": 1.0, "cosine": 0.01}[recipe] if weight is None else weight
        expected = -report["mi"] + expected_weight * (report["kl_12"] + report["kl_21"]) / 2
        assert report["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"mib"}))
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_other_losses_are_minus_the_information(loss, recipe):
    report = run_loss(build_loss(loss=loss, recipe=recipe))
    assert report["loss"].item() == -report["mi"].item()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_metrics_describe_the_gaussians(recipe):
    module = build_loss(recipe=recipe)
    first, second = (module.head(view) for view in draw_hidden_states())
    report = run_loss(module)
    reduction = RECIPES[recipe].kl_reduction
    expected = {
        "kl_12": gaussian_kl(*first, *second, reduction).mean(),
        "kl_21": gaussian_kl(*second, *first, reduction).mean(),
        "mean_spread": (first[0].std(dim=0).mean() + second[0].std(dim=0).mean()) / 2,
        "deviation": (first[1].mean() + second[1].mean()) / 2,
    }
    for name, value in expected.items():
        assert report[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_the_latents_have_the_means_and_the_standard_deviations_of_the_head():
    """The critic is replaced by one that records its inputs."""
    module, recorded = build_loss(), []
    module.critic = torch.nn.Module()
    module.critic.forward = lambda first, second: recorded.append((first, second)) or first @ second.T
    means, deviations = zip(*(module.head(view) for view in draw_hidden_states()), strict=True)
    for seed in range(500):
        run_loss(module, seed=seed)
    for view in range(2):
        latents = torch.stack([pair[view] for pair in recorded]).detach()  # (500, batch, latent)
        assert torch.allclose(latents.mean(dim=0), means[view], atol=0.15)
        assert torch.allclose(latents.std(dim=0), deviations[view], atol=0.15)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"cl"}))
def test_a_generator_replaces_the_global_one(loss):
    """It draws the same latents as the global one with the same seed, and leaves the global one as it is."""
    module = build_loss(loss=loss)
    expected = run_loss(module, seed=5)["loss"]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    given = module(*draw_hidden_states(), IDS, generator=torch.Generator().manual_seed(5))["loss"]
    assert torch.equal(given, expected) and torch.equal(torch.get_rng_state(), state)


def test_infomax_pairs_the_hidden_state_of_a_view_with_its_own_latent():
    module, recorded = build_loss(loss="infomax"), []
    critic = module.critic
    module.critic = torch.nn.Module()
    module.critic.forward = lambda first, second: recorded.append((first, second)) or critic(first, second)
    torch.nn.init.constant_(module.head.deviation[-1].bias, -100.0)  # the standard deviation is at its minimum
    hidden = draw_hidden_states()
    run_loss(module, *hidden)
    for view, (first, second) in enumerate(recorded):
        assert torch.equal(first, hidden[view])
        assert torch.allclose(second, module.head(hidden[view])[0], atol=0.02)


def test_cl_is_the_contrastive_loss_of_the_means_with_every_estimator():
    first, second = draw_hidden_states()
    for estimator in LOWER_BOUNDS:
        module = build_loss(loss="cl", estimator=estimator)
        expected = contrastive_loss(module.head(first), module.head(second))
        assert run_loss(module)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_mib_without_kl_equals_mvi_with_the_same_noise(recipe):
    mib, mvi = build_loss(loss="mib", recipe=recipe, kl_weight=0.0), build_loss(loss="mvi", recipe=recipe)
    assert torch.equal(run_loss(mib)["loss"], run_loss(mvi)["loss"])


def test_the_weight_of_a_call_overrides_the_weight_of_the_module():
    module = build_loss(kl_weight=0.7)
    assert torch.equal(run_loss(module, kl_weight=0.2)["loss"], run_loss(build_loss(kl_weight=0.2))["loss"])
    assert torch.equal(run_loss(module)["loss"], run_loss(build_loss(kl_weight=0.7))["loss"])


@every_loss
def test_a_seed_reproduces_the_loss_and_only_cl_has_no_noise(loss, recipe):
    module = build_loss(loss=loss, recipe=recipe)
    assert torch.equal(run_loss(module, seed=5)["loss"], run_loss(module, seed=5)["loss"])
    assert torch.equal(run_loss(module, seed=5)["loss"], run_loss(module, seed=6)["loss"]) == (loss == "cl")


@every_loss
def test_the_order_of_the_batch_does_not_matter(loss, recipe):
    """The noise depends on the order of the rows, so the standard deviation is set to its minimum."""
    module = build_loss(loss=loss, recipe=recipe)
    if loss != "cl":
        torch.nn.init.constant_(module.head.deviation[-1].bias, -100.0)
    first, second = draw_hidden_states()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    shuffled = run_loss(module, first[order], second[order], ids=IDS[order])
    assert shuffled["mi"].item() == pytest.approx(run_loss(module)["mi"].item(), abs=0.02)


@every_loss
def test_pairs_of_the_same_prompt_are_not_product_pairs(loss, recipe):
    """If rows 0 and 1 have the same prompt, the loss ignores the score of (0, 1), so the loss changes."""
    module = build_loss(loss=loss, recipe=recipe)
    ids = IDS.clone()
    ids[1] = ids[0]
    assert run_loss(module, ids=ids)["loss"] != run_loss(module)["loss"]
    assert torch.equal(run_loss(module, ids=ids + 40)["loss"], run_loss(module, ids=ids)["loss"])


@every_loss
def test_the_loss_is_computed_in_fp32_under_autocast_and_in_half_precision(loss, recipe):
    module = build_loss(loss=loss, recipe=recipe)
    half = draw_hidden_states(torch.bfloat16)
    expected = run_loss(module, *(view.float() for view in half))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = [view.clone().requires_grad_() for view in half]
        loss_value = run_loss(module, *hidden)["loss"]
    assert loss_value.dtype == torch.float32
    assert torch.equal(loss_value, expected)
    loss_value.backward()
    for view in hidden:
        assert view.grad.dtype == torch.bfloat16 and view.grad.abs().sum() > 0


def test_heads_are_in_fp32_even_if_the_default_is_half_precision():
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = build_loss()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@every_loss
def test_nan_in_a_hidden_state_gives_a_nan_loss(loss, recipe):
    for view in range(2):
        hidden = draw_hidden_states()
        hidden[view][3, 0] = math.nan
        assert run_loss(build_loss(loss=loss, recipe=recipe), *hidden)["loss"].isnan()


@every_loss
def test_the_smallest_batch_has_two_prompts(loss, recipe):
    module = build_loss(loss=loss, recipe=recipe)
    first, second = draw_hidden_states()
    report = run_loss(module, first[:2], second[:2], ids=IDS[:2])
    assert all(value.isfinite() for value in report.values())
    with pytest.raises(ValueError, match="`prompt_indices` has fewer than two distinct prompts"):
        module(first[:2], second[:2], torch.tensor([3, 3]))


@every_loss
def test_a_state_dict_restores_the_loss(loss, recipe):
    module = build_loss(loss=loss, recipe=recipe)
    state = copy.deepcopy(module.state_dict())
    torch.manual_seed(9)
    other = RepresentationLoss(HIDDEN, latent_size=LATENT, loss=loss, recipe=recipe)
    assert run_loss(other)["loss"] != run_loss(module)["loss"]
    other.load_state_dict(state)
    assert torch.equal(run_loss(other)["loss"], run_loss(module)["loss"])


@pytest.mark.parametrize(("loss", "common"), [*((loss, 0.0) for loss in LOSSES), ("mib", 4.0)])
def test_the_cosine_recipe_finds_information_in_correlated_gaussians(loss, common):
    """
    The views are two noisy copies of a signal, around 0 or around a mean more than three times as long as the
    signal, as for the hidden states of language models. The estimate on unseen views is well above its
    zero-information value.
    """
    torch.manual_seed(0)
    signal = torch.randn(320, HIDDEN)
    first, second = (common + signal + 0.5 * torch.randn(320, HIDDEN) for _ in range(2))
    module = RepresentationLoss(HIDDEN, loss=loss, recipe="cosine")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(250):
        rows = torch.randperm(256)[:16]
        optimizer.zero_grad()
        module(first[rows], second[rows], rows)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        report = module(first[256:], second[256:], torch.arange(64))
    assert report["mi"] > report["mi_zero"] + 0.5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"loss": "vib"}, r"`loss` must be one of \['mib', 'mvi', 'infomax', 'cl'\], got 'vib'"),
        ({"estimator": "mine"}, r"`estimator` must be one of \['jsd', 'nce', 'nwj'\], got 'mine'"),
        ({"recipe": "lab"}, r"`recipe` must be one of \['paper', 'cosine'\], got 'lab'"),
        ({"kl_weight": -0.1}, "`kl_weight` must be finite and at least 0, got -0.1"),
        ({"kl_weight": math.nan}, "`kl_weight` must be finite and at least 0, got nan"),
        ({"latent_size": 0}, "`latent_size` must be at least 1, got 0"),
        ({"hidden_size": 0}, "`hidden_size` must be at least 1, got 0"),
    ],
)
def test_errors_name_the_invalid_setting(settings, match):
    with pytest.raises(ValueError, match=match):
        RepresentationLoss(**{"hidden_size": HIDDEN, **settings})


def test_errors_name_the_invalid_input():
    module = build_loss()
    first, second = draw_hidden_states()
    with pytest.raises(
        ValueError, match=r"`hidden_2` must have shape \(batch, hidden_size\) = \(6, 16\), got \(5, 16\)"
    ):
        module(first, second[:5], IDS)
    with pytest.raises(ValueError, match=r"`hidden_1` must have shape .* = \(6, 16\), got \(6, 8\)"):
        module(first[:, :8], second, IDS)
    with pytest.raises(ValueError, match="`kl_weight` must be finite and at least 0, got inf"):
        module(first, second, IDS, kl_weight=math.inf)
