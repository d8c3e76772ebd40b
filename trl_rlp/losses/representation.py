"""L_M of RLP's Eq. 1 as one module. It takes hidden states of two views and returns the loss and its metrics."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from trl_rlp.losses.heads import CosineCritic, GaussianHead, PairCritic, latent_head
from trl_rlp.losses.multi_view import (
    contrastive_loss,
    gaussian_kl,
    infomax_loss,
    mib_loss,
    mvi_loss,
    product_pairs,
)
from trl_rlp.losses.mutual_information import LOWER_BOUNDS, ZERO_INFORMATION


@dataclass(frozen=True)
class Recipe:
    """
    Settings of the heads and the weight of the symmetric KL.

    Args:
        has_linear_mean (`bool`):
            Whether μ is one linear layer instead of a three-layer perceptron.
        critic (`Callable[[int, int], nn.Module]`):
            Builds a critic from the sizes of a first and a second view.
        kl_reduction (`str`):
            How the KL is reduced over the latent dimensions: `"sum"` or `"mean"`.
        kl_weight (`float`):
            Weight of the symmetric KL in `mib`, at least 0.
    """

    has_linear_mean: bool
    critic: Callable[[int, int], nn.Module]
    kl_reduction: str
    kl_weight: float


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(has_linear_mean=False, critic=PairCritic, kl_reduction="sum", kl_weight=1.0),
    "cosine": Recipe(has_linear_mean=True, critic=CosineCritic, kl_reduction="mean", kl_weight=0.01),
}
"""Recipes by name. `paper` is L_M as in the paper. `cosine` is ours. It kept information where `paper` lost it."""


class RepresentationLoss(nn.Module):
    r"""
    Computes L_M, the term that RLP-UML adds to the loss of the reward model, and metrics that show whether it works.

    $$\mathcal{L} = \mathcal{L}_{\hat R} + \lambda L_M(h_1, h_2)$$

    It owns the heads (μ, σ and the critic). They are used only during training and are never part of a saved reward
    model. The gradients reach the hidden states, and through them the backbone of the reward model. λ is not applied
    here.

    All computations are in fp32, also under autocast and with hidden states in half precision. The latents are sampled
    with the given generator, or with torch's global one of the device of the hidden states, also in `eval()` mode.
    Nothing else is random. NaN in a hidden state is not masked and gives a NaN loss.

    Args:
        hidden_size (`int`):
            Size of the reward model's hidden states.
        loss (`str`, *optional*, defaults to `"mib"`):
            A key of [`LOSSES`]: `mib`, `mvi`, `infomax` or `cl`, as in Table 4 of the paper.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`]: `jsd`, `nce` or `nwj`. `cl` ignores it, because it is InfoNCE by definition.
        latent_size (`int`, *optional*, defaults to `128`):
            Size of the latent z.
        recipe (`str`, *optional*, defaults to `"paper"`):
            A key of [`RECIPES`]. `paper`: three-layer perceptron for μ, perceptron critic, KL summed over the latent
            dimensions, weight 1. `cosine` (ours): linear μ, cosine critic with a learned temperature and offset, KL
            averaged over the dimensions, weight 0.01.
        kl_weight (`float`, *optional*):
            Weight of the symmetric KL, at least 0. Defaults to the weight of the recipe. Only `mib` uses it.

    Raises:
        ValueError: If a name is unknown, a size is below 1, or the weight is negative or not finite.

    Relations:
        With the same random latents, `mib` with `kl_weight=0` has the same loss and gradients as `mvi`. `cl` has no σ
        and no critic.

    Reference:
        Eq. 1 and Table 4 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279). The recipe `cosine` is ours.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import RepresentationLoss
    >>> representation_loss = RepresentationLoss(hidden_size=16)
    >>> report = representation_loss(torch.randn(8, 16), torch.randn(8, 16), prompt_indices=torch.arange(8))
    >>> sorted(report)
    ['deviation', 'kl_12', 'kl_21', 'loss', 'mean_spread', 'mi', 'mi_zero']

    ```
    """

    def __init__(
        self,
        hidden_size: int,
        loss: str = "mib",
        estimator: str = "jsd",
        latent_size: int = 128,
        recipe: str = "paper",
        kl_weight: float | None = None,
    ):
        super().__init__()
        _require_key("loss", loss, LOSSES)
        _require_key("estimator", estimator, LOWER_BOUNDS)
        _require_key("recipe", recipe, RECIPES)
        self.loss = loss
        self.estimator = "nce" if loss == "cl" else estimator
        self.recipe = RECIPES[recipe]
        self.kl_weight = _require_weight(self.recipe.kl_weight if kl_weight is None else kl_weight)
        self.hidden_size = hidden_size
        # Build only the parameters that the loss uses, because DDP fails on parameters without a gradient.
        if loss == "cl":
            self.head = latent_head(hidden_size, latent_size, is_linear=self.recipe.has_linear_mean)
        else:
            first_size = hidden_size if loss == "infomax" else latent_size
            self.head = GaussianHead(hidden_size, latent_size, has_linear_mean=self.recipe.has_linear_mean)
            self.critic = self.recipe.critic(first_size, latent_size)
        self.float()

    def forward(
        self,
        hidden_1: torch.Tensor,
        hidden_2: torch.Tensor,
        prompt_indices: torch.Tensor,
        kl_weight: float | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Computes the loss and its metrics on one batch of views.

        Args:
            hidden_1 (`torch.Tensor` of shape `(batch, hidden_size)`):
                Final-layer hidden states of the first views, at the tokens from which the scores are read. Any float
                type.
            hidden_2 (`torch.Tensor` of shape `(batch, hidden_size)`):
                Hidden states of the second views. Row `i` has the same prompt as row `i` of `hidden_1`, but another
                completion.
            prompt_indices (`torch.Tensor` of shape `(batch,)`):
                Integers that are equal if and only if the prompt is the same. At least two of them differ.
            kl_weight (`float`, *optional*):
                Weight of the symmetric KL in this call, at least 0, for example for a warm-up. Only `mib` uses it.
            generator (`torch.Generator`, *optional*):
                Generator of the latents, on the device of the hidden states. Defaults to torch's global one. `cl` has
                no random latents.

        Returns:
            `dict[str, torch.Tensor]`: fp32 scalars. All except `"loss"` are detached.

            | key | losses | meaning | range |
            | --- | --- | --- | --- |
            | `loss` | all | L_M, to minimize | nats |
            | `mi` | all | estimate of the mutual information: the bound inside the loss | nats, higher is better |
            | `mi_zero` | all | best possible `mi` if the views share nothing | nats, constant |
            | `kl_12`, `kl_21` | `mib` | KL in both directions, reduced as in the recipe | nats, at least 0 |
            | `mean_spread` | all | standard deviation of μ over the batch, mean over dimensions, views | at least 0 |
            | `deviation` | all but `cl` | mean of σ over batch, dimensions and views | greater than 0 |

            The latents have collapsed if `mi` stays at `mi_zero`, or if `mean_spread` is far below `deviation`.

        Raises:
            ValueError: If a shape is wrong, there are fewer than two distinct prompts, or the weight is negative or
                not finite.
        """
        self._require_shapes(hidden_1, hidden_2, prompt_indices)
        kl_weight = self.kl_weight if kl_weight is None else _require_weight(kl_weight)
        product = product_pairs(prompt_indices)  # (batch, batch)
        with torch.autocast(hidden_1.device.type, enabled=False):
            hidden = torch.cat([hidden_1, hidden_2]).float()  # (2 batch, hidden)
            report = LOSSES[self.loss](self, hidden, product, kl_weight, generator)
        report["mi_zero"] = torch.tensor(ZERO_INFORMATION[self.estimator], device=hidden.device)
        return {name: value if name == "loss" else value.detach() for name, value in report.items()}

    def _require_shapes(self, hidden_1: torch.Tensor, hidden_2: torch.Tensor, prompt_indices: torch.Tensor) -> None:
        expected = (len(prompt_indices), self.hidden_size)
        for name, hidden in {"hidden_1": hidden_1, "hidden_2": hidden_2}.items():
            if hidden.shape != expected:
                raise ValueError(
                    f"`{name}` must have shape (batch, hidden_size) = {expected}, got {tuple(hidden.shape)}. Pass one "
                    "hidden state for each entry of `prompt_indices`."
                )


def _mib(
    module: RepresentationLoss,
    hidden: torch.Tensor,
    product: torch.Tensor,
    kl_weight: float,
    generator: torch.Generator | None,
):
    mean, deviation = module.head(hidden)  # (2 batch, latent) each
    scores = module.critic(*_sample_latents(mean, deviation, generator).chunk(2))  # (batch, batch)
    (mean_1, mean_2), (deviation_1, deviation_2) = mean.chunk(2), deviation.chunk(2)  # (batch, latent) each
    first, second, reduction = (mean_1, deviation_1), (mean_2, deviation_2), module.recipe.kl_reduction
    return {
        "loss": mib_loss(scores, *first, *second, product, module.estimator, kl_weight, reduction),
        "mi": LOWER_BOUNDS[module.estimator](scores, product),
        "kl_12": gaussian_kl(*first, *second, reduction).mean(),
        "kl_21": gaussian_kl(*second, *first, reduction).mean(),
        "mean_spread": _compute_spread(mean),
        "deviation": deviation.mean(),
    }


def _mvi(
    module: RepresentationLoss,
    hidden: torch.Tensor,
    product: torch.Tensor,
    kl_weight: float,
    generator: torch.Generator | None,
):
    mean, deviation = module.head(hidden)  # (2 batch, latent) each
    scores = module.critic(*_sample_latents(mean, deviation, generator).chunk(2))  # (batch, batch)
    loss = mvi_loss(scores, product, module.estimator)
    return {"loss": loss, "mi": -loss, "mean_spread": _compute_spread(mean), "deviation": deviation.mean()}


def _infomax(
    module: RepresentationLoss,
    hidden: torch.Tensor,
    product: torch.Tensor,
    kl_weight: float,
    generator: torch.Generator | None,
):
    mean, deviation = module.head(hidden)  # (2 batch, latent) each
    (hidden_1, hidden_2), (z_1, z_2) = hidden.chunk(2), _sample_latents(mean, deviation, generator).chunk(2)
    scores_1, scores_2 = module.critic(hidden_1, z_1), module.critic(hidden_2, z_2)  # (batch, batch) each
    loss = infomax_loss(scores_1, scores_2, product, module.estimator)
    return {"loss": loss, "mi": -loss, "mean_spread": _compute_spread(mean), "deviation": deviation.mean()}


def _contrastive(
    module: RepresentationLoss,
    hidden: torch.Tensor,
    product: torch.Tensor,
    kl_weight: float,
    generator: torch.Generator | None,
):
    mean = module.head(hidden)  # (2 batch, latent)
    mean_1, mean_2 = mean.chunk(2)  # (batch, latent) each
    loss = contrastive_loss(mean_1, mean_2, product)
    return {"loss": loss, "mi": -loss, "mean_spread": _compute_spread(mean)}


LOSSES: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "mib": _mib,
    "mvi": _mvi,
    "infomax": _infomax,
    "cl": _contrastive,
}
"""The representation losses of Table 4 of the paper, by the name used in configurations."""


def _sample_latents(mean: torch.Tensor, deviation: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    noise = torch.randn(deviation.shape, generator=generator, dtype=deviation.dtype, device=deviation.device)
    return mean + deviation * noise


def _compute_spread(mean: torch.Tensor) -> torch.Tensor:
    return mean.unflatten(0, (2, -1)).std(dim=1).mean()  # (2, batch, latent) -> (2, latent) -> ()


def _require_key(argument: str, value: str, allowed: dict) -> None:
    if value not in allowed:
        raise ValueError(f"`{argument}` must be one of {list(allowed)}, got {value!r}.")


def _require_weight(kl_weight: float) -> float:
    if not (math.isfinite(kl_weight) and kl_weight >= 0):
        raise ValueError(f"`kl_weight` must be finite and at least 0, got {kl_weight}. 0 turns the KL off.")
    return kl_weight
