"""L_M of RLP's Eq. 1 as one module: hidden states of two views in, a loss and what to log about it out."""

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
    Says how the heads are built and how hard the symmetric KL pulls.

    Args:
        has_linear_mean (`bool`):
            One linear map for μ in place of a three-layer perceptron.
        critic (`Callable[[int, int], nn.Module]`):
            Makes a critic from the sizes of a first and a second view.
        kl_reduction (`str`):
            `"sum"` or `"mean"` of the KL over the latent dimensions.
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
"""Ways to build the heads: the paper's L_M as written, and ours, which kept information where the paper's lost it."""


class RepresentationLoss(nn.Module):
    r"""
    Gives L_M, the loss that RLP-UML adds to the reward model's, and the diagnostics that say whether it does anything.

    $$\mathcal{L} = \mathcal{L}_{\hat R} + \lambda L_M(h_1, h_2)$$

    It owns the heads (μ, σ and the critic), which serve training only and are never part of a saved reward model. Its
    gradients reach the hidden states, and so the reward model's trunk. λ is not applied here.

    Everything is computed in fp32, also under autocast and from half-precision hidden states. The latents are drawn
    with torch's global generator of the hidden states' device, in `eval()` mode too, so `torch.manual_seed` reproduces
    them; nothing else is random. NaN in a hidden state gives a NaN loss: it is not masked.

    Args:
        hidden_size (`int`):
            Size of the reward model's hidden states.
        loss (`str`, *optional*, defaults to `"mib"`):
            A key of [`LOSSES`]: `mib`, `mvi`, `infomax` or `cl`, Table 4 of the paper.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`]: `jsd`, `nce` or `nwj`. `cl` is InfoNCE by definition and does not read it.
        latent_size (`int`, *optional*, defaults to `128`):
            Size of the latent z.
        recipe (`str`, *optional*, defaults to `"paper"`):
            A key of [`RECIPES`]. `paper`: three-layer perceptron for μ, perceptron critic, KL summed over the latent
            dimensions, weight 1. `cosine` (ours): linear μ, cosine critic with a learnt temperature and offset, KL
            averaged over the dimensions, weight 0.01.
        kl_weight (`float`, *optional*):
            Weight of the symmetric KL, at least 0, in place of the recipe's. Only `mib` reads it.

    Raises:
        ValueError: if a name is unknown, a size is below 1 or the weight is negative or not finite.

    Relations:
        `mib` with `kl_weight=0` gives the loss and the gradients of `mvi`, draw for draw. `cl` has no σ and no critic.

    Reference:
        Eq. 1 and Table 4 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279). The recipe `cosine` is ours.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import RepresentationLoss
    >>> representation_loss = RepresentationLoss(hidden_size=16)
    >>> report = representation_loss(torch.randn(8, 16), torch.randn(8, 16), instruction_ids=torch.arange(8))
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
        self.kl_weight = _checked_weight(self.recipe.kl_weight if kl_weight is None else kl_weight)
        self.hidden_size = hidden_size
        # Only what the loss uses is built: DDP stops at parameters without a gradient.
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
        instruction_ids: torch.Tensor,
        kl_weight: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Gives the loss and its diagnostics on one batch of views.

        Args:
            hidden_1 (`torch.Tensor` of shape `(batch, hidden_size)`):
                Final-layer hidden states of the first views, at the tokens the scores are read from; any float type.
            hidden_2 (`torch.Tensor` of shape `(batch, hidden_size)`):
                The same of the second views: row by row another output of the same instruction.
            instruction_ids (`torch.Tensor` of shape `(batch,)`):
                Whole numbers, equal exactly where the instruction is the same. At least two distinct ones.
            kl_weight (`float`, *optional*):
                Weight of the symmetric KL for this call, at least 0, for a ramp. Only `mib` reads it.

        Returns:
            `dict[str, torch.Tensor]`: fp32 scalars; all but `"loss"` are detached.

            | key | losses | what | range |
            | --- | --- | --- | --- |
            | `loss` | all | L_M, to minimize | nats |
            | `mi` | all | estimate of the information, the bound that the loss holds | nats, higher is better |
            | `mi_zero` | all | what `mi` is at best when the views share nothing | nats, constant |
            | `kl_12`, `kl_21` | `mib` | the two KL directions, reduced as the recipe says | nats, at least 0 |
            | `mean_spread` | all | deviation of μ over the batch, averaged over dimensions and views | at least 0 |
            | `deviation` | all but `cl` | σ, averaged over batch, dimensions and views | greater than 0 |

            An `mi` that stays at `mi_zero`, or a `mean_spread` far below `deviation`, says that the latents collapsed.

        Raises:
            ValueError: if a shape is wrong, there are fewer than two distinct instructions, or the weight is negative
                or not finite.
        """
        self._require_shapes(hidden_1, hidden_2, instruction_ids)
        kl_weight = self.kl_weight if kl_weight is None else _checked_weight(kl_weight)
        product = product_pairs(instruction_ids)  # (batch, batch)
        with torch.autocast(hidden_1.device.type, enabled=False):
            hidden = torch.cat([hidden_1, hidden_2]).float()  # (2 batch, hidden)
            report = LOSSES[self.loss](self, hidden, product, kl_weight)
        report["mi_zero"] = torch.tensor(ZERO_INFORMATION[self.estimator], device=hidden.device)
        return {name: value if name == "loss" else value.detach() for name, value in report.items()}

    def _require_shapes(self, hidden_1: torch.Tensor, hidden_2: torch.Tensor, instruction_ids: torch.Tensor) -> None:
        expected = (len(instruction_ids), self.hidden_size)
        for name, hidden in {"hidden_1": hidden_1, "hidden_2": hidden_2}.items():
            if hidden.shape != expected:
                raise ValueError(
                    f"`{name}` must have shape (batch, hidden_size) = {expected}, got {tuple(hidden.shape)}. Pass one "
                    "hidden state an instruction id."
                )


def _mib(module: RepresentationLoss, hidden: torch.Tensor, product: torch.Tensor, kl_weight: float):
    mean, deviation = module.head(hidden)  # (2 batch, latent) each
    scores = module.critic(*_sample(mean, deviation).chunk(2))  # (batch, batch)
    (mean_1, mean_2), (deviation_1, deviation_2) = mean.chunk(2), deviation.chunk(2)  # (batch, latent) each
    first, second, reduction = (mean_1, deviation_1), (mean_2, deviation_2), module.recipe.kl_reduction
    return {
        "loss": mib_loss(scores, *first, *second, product, module.estimator, kl_weight, reduction),
        "mi": LOWER_BOUNDS[module.estimator](scores, product),
        "kl_12": gaussian_kl(*first, *second, reduction).mean(),
        "kl_21": gaussian_kl(*second, *first, reduction).mean(),
        "mean_spread": _spread(mean),
        "deviation": deviation.mean(),
    }


def _mvi(module: RepresentationLoss, hidden: torch.Tensor, product: torch.Tensor, kl_weight: float):
    mean, deviation = module.head(hidden)  # (2 batch, latent) each
    scores = module.critic(*_sample(mean, deviation).chunk(2))  # (batch, batch)
    loss = mvi_loss(scores, product, module.estimator)
    return {"loss": loss, "mi": -loss, "mean_spread": _spread(mean), "deviation": deviation.mean()}


def _infomax(module: RepresentationLoss, hidden: torch.Tensor, product: torch.Tensor, kl_weight: float):
    mean, deviation = module.head(hidden)  # (2 batch, latent) each
    pairs = zip(hidden.chunk(2), _sample(mean, deviation).chunk(2), strict=True)
    scores = [module.critic(h, z) for h, z in pairs]  # (batch, batch) each
    loss = infomax_loss(*scores, product, module.estimator)
    return {"loss": loss, "mi": -loss, "mean_spread": _spread(mean), "deviation": deviation.mean()}


def _contrastive(module: RepresentationLoss, hidden: torch.Tensor, product: torch.Tensor, kl_weight: float):
    mean = module.head(hidden)  # (2 batch, latent)
    loss = contrastive_loss(*mean.chunk(2), product)
    return {"loss": loss, "mi": -loss, "mean_spread": _spread(mean)}


LOSSES: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "mib": _mib,
    "mvi": _mvi,
    "infomax": _infomax,
    "cl": _contrastive,
}
"""The representation losses of the paper's Table 4 by the name that configurations use."""


def _sample(mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    return mean + deviation * torch.randn_like(deviation)


def _spread(mean: torch.Tensor) -> torch.Tensor:
    return mean.unflatten(0, (2, -1)).std(dim=1).mean()  # (2, batch, latent) -> (2, latent) -> ()


def _require_key(argument: str, value: str, allowed: dict) -> None:
    if value not in allowed:
        raise ValueError(f"`{argument}` must be one of {list(allowed)}, got {value!r}.")


def _checked_weight(kl_weight: float) -> float:
    if not (math.isfinite(kl_weight) and kl_weight >= 0):
        raise ValueError(f"`kl_weight` must be finite and at least 0, got {kl_weight}. 0 switches the KL off.")
    return kl_weight
