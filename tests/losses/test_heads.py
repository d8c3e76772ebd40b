import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, relu

from trl_rlp.losses import CosineCritic, GaussianHead, PairCritic, latent_head


@pytest.fixture(autouse=True)
def fix_seed():
    torch.manual_seed(0)


def list_linear_layers(module: nn.Module) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in module.modules() if isinstance(layer, nn.Linear)]


def test_latent_head_has_three_layers_as_wide_as_the_hidden_state_up_to_1024():
    assert list_linear_layers(latent_head(16, 4)) == [(16, 16), (16, 16), (16, 4)]
    assert list_linear_layers(latent_head(2048)) == [(2048, 1024), (1024, 1024), (1024, 128)]
    assert list_linear_layers(latent_head(16, 4, is_linear=True)) == [(16, 4)]


def test_gaussian_head_has_one_network_for_the_mean_and_one_for_the_standard_deviation():
    assert list_linear_layers(GaussianHead(16, 4)) == 2 * [(16, 16), (16, 16), (16, 4)]
    assert list_linear_layers(GaussianHead(16, 4, has_linear_mean=True)) == [(16, 4), (16, 16), (16, 16), (16, 4)]
    mean, deviation = GaussianHead(16)(torch.randn(3, 16))
    assert mean.shape == deviation.shape == (3, 128)
    assert (mean < 0).any()


def test_a_linear_mean_is_linear():
    head = GaussianHead(16, 4, has_linear_mean=True)
    x, y = torch.randn(2, 3, 16)
    at_zero = head(torch.zeros(3, 16))[0]
    assert torch.allclose(head(x + y)[0], head(x)[0] + head(y)[0] - at_zero, atol=1e-5)


def test_the_standard_deviation_is_softplus_plus_the_minimum():
    """With zero weights, a last bias of 0 gives softplus(0) + minimum = ln 2 + minimum. -1000 gives the minimum."""
    head = GaussianHead(8, 4, smallest_deviation=0.01)
    nn.init.zeros_(head.deviation[-1].weight)
    for bias, expected in ((0.0, math.log(2) + 0.01), (-1000.0, 0.01), (1000.0, 1000.01)):
        nn.init.constant_(head.deviation[-1].bias, bias)
        assert head(torch.randn(2, 8))[1].flatten().tolist() == pytest.approx(8 * [expected])


@pytest.mark.parametrize("sizes", [(6, 6), (10, 6)], ids=["latents", "hidden and latent"])
def test_pair_critic_equals_the_perceptron_on_concatenated_pairs(sizes):
    critic = PairCritic(*sizes, intermediate_size=32).double()
    first, second = torch.randn(5, sizes[0]).double(), torch.randn(5, sizes[1]).double()
    pairs = torch.cat([first.repeat_interleave(5, dim=0), second.repeat(5, 1)], dim=1)  # (25, first + second)
    expected = critic.score(relu(critic.hidden(relu(critic.pair(pairs))))).view(5, 5)
    assert torch.allclose(critic(first, second), expected)


def test_pair_critic_has_two_hidden_layers_of_1024():
    assert list_linear_layers(PairCritic(6, 7)) == [(13, 1024), (1024, 1024), (1024, 1)]


@pytest.mark.parametrize("critic", [PairCritic, CosineCritic])
@pytest.mark.parametrize("sizes", [(6, 6), (10, 6)])
def test_rows_are_first_views_and_columns_second_views(critic, sizes):
    """A change of first view 1 changes only row 1. A change of second view 2 changes only column 2."""
    critic = critic(*sizes)
    first, second = torch.randn(4, sizes[0]), torch.randn(4, sizes[1])
    scores = critic(first, second)
    other_first, other_second = first.clone(), second.clone()
    other_first[1], other_second[2] = torch.randn(sizes[0]), torch.randn(sizes[1])
    row, column = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    row[1], column[:, 2] = True, True
    assert torch.equal(~torch.isclose(critic(other_first, second), scores, atol=1e-5), row)
    assert torch.equal(~torch.isclose(critic(first, other_second), scores, atol=1e-5), column)


@pytest.mark.parametrize("critic", [PairCritic, CosineCritic])
@pytest.mark.parametrize("sizes", [(6, 6), (10, 6)])
def test_all_parameters_of_a_critic_and_both_views_get_a_gradient(critic, sizes):
    critic = critic(*sizes)
    first, second = (torch.randn(4, size, requires_grad=True) for size in sizes)
    critic(first, second).diagonal().sum().backward()
    for tensor in (first, second, *critic.parameters()):
        assert tensor.grad.abs().sum() > 0


def test_cosine_critic_is_a_scaled_and_shifted_cosine():
    critic = CosineCritic(6, 6, temperature=0.5)
    nn.init.constant_(critic.offset, 3.0)
    first, second = torch.randn(2, 4, 6)
    expected = cosine_similarity(first[:, None], second[None, :], dim=-1) / 0.5 + 3
    assert torch.allclose(critic(first, second), expected, atol=1e-5)
    assert torch.allclose(critic(100 * first, second), expected, atol=1e-5)


def test_cosine_critic_initially_gives_a_score_of_0_to_a_cosine_of_one_half():
    """cos 60° = 1/2. At temperature 0.2, the scores are 5 (cos - 1/2)."""
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.5, math.sqrt(3) / 2], [0.0, 2.0]])
    expected = torch.tensor([[0.0, -2.5], [5 * (math.sqrt(3) / 2 - 0.5), 2.5]])
    assert torch.allclose(CosineCritic(2, 2)(first, second), expected, atol=1e-5)


def test_a_zero_latent_has_cosine_0_and_nan_stays_nan():
    critic = CosineCritic(2, 2)
    second = torch.eye(2)
    assert torch.allclose(critic(torch.zeros(2, 2), second), torch.full((2, 2), -2.5))
    assert critic(torch.full((2, 2), math.nan), second).isnan().all()


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: latent_head(0, 4), "`hidden_size` must be at least 1, got 0"),
        (lambda: GaussianHead(8, 0), "`latent_size` must be at least 1, got 0"),
        (lambda: GaussianHead(8, smallest_deviation=0.0), "`smallest_deviation` must be greater than 0, got 0.0"),
        (lambda: GaussianHead(8, smallest_deviation=math.nan), "`smallest_deviation` must be greater than 0, got nan"),
        (lambda: PairCritic(0, 4), "`first_size` must be at least 1, got 0"),
        (lambda: PairCritic(4, 4, intermediate_size=0), "`intermediate_size` must be at least 1, got 0"),
        (lambda: CosineCritic(4, -1), "`second_size` must be at least 1, got -1"),
        (lambda: CosineCritic(4, 4, temperature=0.0), "`temperature` must be greater than 0, got 0.0"),
    ],
)
def test_errors_name_the_invalid_argument(build, match):
    with pytest.raises(ValueError, match=match):
        build()
