"""Heads and critics of the representation losses: small modules that exist only during training."""

import math

import torch
from torch import nn
from torch.nn.functional import linear, normalize, relu, softplus


def latent_head(hidden_size: int, latent_size: int = 128, is_linear: bool = False) -> nn.Module:
    """
    Builds a network from hidden states to vectors of the latent size. It computes μ, or σ before its softplus.

    Args:
        hidden_size (`int`):
            Size of a hidden state.
        latent_size (`int`, *optional*, defaults to `128`):
            Size of the latent. The default is ours. RLP does not specify it.
        is_linear (`bool`, *optional*, defaults to `False`):
            Whether to build one linear layer instead of a three-layer ReLU perceptron.

    Returns:
        `nn.Module`: Maps `(batch, hidden_size)` to `(batch, latent_size)`. The two hidden layers of the perceptron are
        as wide as the hidden state, at most 1,024. The width is ours. RLP does not specify it.

    Raises:
        ValueError: If a size is below 1.

    Reference:
        RLP specifies "three-layer", [Lang et al. 2024](https://arxiv.org/abs/2403.19279).
    """
    _require_sizes(hidden_size=hidden_size, latent_size=latent_size)
    if is_linear:
        return nn.Linear(hidden_size, latent_size)
    width = min(hidden_size, 1024)
    return nn.Sequential(
        nn.Linear(hidden_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, latent_size)
    )


class GaussianHead(nn.Module):
    r"""
    Computes the distribution of the latent of a view from the hidden state of the view.

    $$p(z|v) = N(\mu(h), diag(\sigma^2(h)))$$

    Args:
        hidden_size (`int`):
            Size of a hidden state.
        latent_size (`int`, *optional*, defaults to `128`):
            Size of the latent. The default is ours. RLP does not specify it.
        has_linear_mean (`bool`, *optional*, defaults to `False`):
            Whether μ is one linear layer instead of a three-layer perceptron. σ is always a perceptron.
        smallest_deviation (`float`, *optional*, defaults to `1e-3`):
            Minimum of the standard deviation σ, greater than 0 (ours). It keeps the KL divergence finite when σ
            shrinks.

    Raises:
        ValueError: If a size is below 1 or `smallest_deviation` is not positive.

    Reference:
        [Lang et al. 2024](https://arxiv.org/abs/2403.19279) use two three-layer MLPs. Softplus plus a minimum is ours,
        as in the code of the MIB paper. A plain exponential overflows.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import GaussianHead
    >>> mean, deviation = GaussianHead(hidden_size=16)(torch.randn(4, 16))
    >>> mean.shape, bool((deviation > 0).all())
    (torch.Size([4, 128]), True)

    ```
    """

    def __init__(
        self,
        hidden_size: int,
        latent_size: int = 128,
        has_linear_mean: bool = False,
        smallest_deviation: float = 1e-3,
    ):
        super().__init__()
        if not smallest_deviation > 0:
            raise ValueError(f"`smallest_deviation` must be greater than 0, got {smallest_deviation}. Try 1e-3.")
        self.smallest_deviation = smallest_deviation
        self.mean = latent_head(hidden_size, latent_size, is_linear=has_linear_mean)
        self.deviation = latent_head(hidden_size, latent_size)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Computes μ and σ.

        Args:
            hidden (`torch.Tensor` of shape `(batch, hidden_size)`):
                Hidden states of views.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The mean, any real number, and the standard deviation, at least
            `smallest_deviation`. Both have shape `(batch, latent_size)`.
        """
        return self.mean(hidden), softplus(self.deviation(hidden)) + self.smallest_deviation


class PairCritic(nn.Module):
    r"""
    Scores every pair of a first and a second view with a perceptron of two hidden layers on `[z1, z2]`.

    $$T(z_{1i}, z_{2j}) = w_3^T relu(W_2 relu(W_1 [z_{1i}, z_{2j}]))$$

    `W_1 [z1_i, z2_j] = A z1_i + B z2_j`, so the first layer runs on `2 batch` rows only, and its outputs are added for
    each pair. The scores are the same up to rounding, without a tensor of shape
    `(batch, batch, first_size + second_size)`. The second layer runs on all pairs, so memory grows with
    `batch^2 * intermediate_size`.

    Args:
        first_size (`int`):
            Size of a first view. It differs from `second_size` for InfoMax, where the pairs are `(h, z)`.
        second_size (`int`):
            Size of a second view.
        intermediate_size (`int`, *optional*, defaults to `1024`):
            Width of both hidden layers.

    Raises:
        ValueError: If a size is below 1.

    Reference:
        Two layers of width 1,024, as in [the code of Federici et al.
        2020](https://github.com/mfederici/Multi-View-Information-Bottleneck/blob/72ce0aa291054d4070f316213594563d838c4c89/utils/modules.py).
        RLP does not specify the critic. The split of the first layer is ours.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import PairCritic
    >>> PairCritic(8, 8)(torch.randn(4, 8), torch.randn(4, 8)).shape
    torch.Size([4, 4])

    ```
    """

    def __init__(self, first_size: int, second_size: int, intermediate_size: int = 1024):
        super().__init__()
        _require_sizes(first_size=first_size, second_size=second_size, intermediate_size=intermediate_size)
        self.sizes = [first_size, second_size]
        self.pair = nn.Linear(first_size + second_size, intermediate_size)
        self.hidden = nn.Linear(intermediate_size, intermediate_size)
        self.score = nn.Linear(intermediate_size, 1)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """
        Computes the score matrix.

        Args:
            first (`torch.Tensor` of shape `(batch, first_size)`):
                First views.
            second (`torch.Tensor` of shape `(batch, second_size)`):
                Second views. Row `i` is the partner of row `i` of `first`.

        Returns:
            `torch.Tensor` of shape `(batch, batch)`: `T(first_i, second_j)`, any real number.
        """
        first_weight, second_weight = self.pair.weight.split(self.sizes, dim=1)
        rows = linear(first, first_weight, self.pair.bias)  # (batch, intermediate)
        columns = linear(second, second_weight)  # (batch, intermediate)
        pairs = relu(rows[:, None] + columns[None, :])  # (batch, batch, intermediate)
        return self.score(relu(self.hidden(pairs))).squeeze(-1)  # (batch, batch)


class CosineCritic(nn.Module):
    r"""
    Scores every pair of a first and a second view by their cosine, with a learned temperature and offset.

    $$T(z_{1i}, z_{2j}) = \cos(z_{1i}, z_{2j}) / \tau + b$$

    It has too few parameters to memorize the training prompts, unlike a perceptron.

    The initial offset gives a score of 0 to a cosine of 1/2. This matters because the final hidden states of a
    language model all point in a similar direction, so cosines start near 1. With an initial offset of 0, the product
    pairs would push σ up until the latents are noise.

    If the views differ in size, a linear layer maps the first view to the size of the second.

    Args:
        first_size (`int`):
            Size of a first view.
        second_size (`int`):
            Size of a second view.
        temperature (`float`, *optional*, defaults to `0.2`):
            Initial τ, greater than 0 (ours). The learned parameter is `-ln τ`, so τ stays positive. The initial `b` is
            `-1 / (2 τ)`.

    Raises:
        ValueError: If a size is below 1 or the temperature is not positive.

    Relations:
        With a fixed temperature of 0.1, μ instead of z, and the InfoNCE bound, it gives the contrastive loss `cl`.

    Reference:
        Ours, after image-text models: [CLIP](https://arxiv.org/abs/2103.00020) learns a temperature, and
        [SigLIP](https://arxiv.org/abs/2303.15343) also learns an offset.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import CosineCritic
    >>> z = torch.eye(2)
    >>> CosineCritic(2, 2)(z, z).round(decimals=4).tolist()
    [[2.5, -2.5], [-2.5, 2.5]]

    ```
    """

    def __init__(self, first_size: int, second_size: int, temperature: float = 0.2):
        super().__init__()
        _require_sizes(first_size=first_size, second_size=second_size)
        if not temperature > 0:
            raise ValueError(f"`temperature` must be greater than 0, got {temperature}. Try 0.2.")
        has_equal_sizes = first_size == second_size
        self.projection = nn.Identity() if has_equal_sizes else nn.Linear(first_size, second_size, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.offset = nn.Parameter(torch.tensor(-0.5 / temperature))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """
        Computes the score matrix.

        Args:
            first (`torch.Tensor` of shape `(batch, first_size)`):
                First views.
            second (`torch.Tensor` of shape `(batch, second_size)`):
                Second views. Row `i` is the partner of row `i` of `first`.

        Returns:
            `torch.Tensor` of shape `(batch, batch)`: `T(first_i, second_j)`, within 1/τ of the offset.
        """
        cosines = normalize(self.projection(first), dim=-1) @ normalize(second, dim=-1).T  # (batch, batch)
        return cosines * self.log_scale.exp() + self.offset


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")
