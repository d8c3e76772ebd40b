"""Floor 0: the arithmetic of the representation losses, in torch and nothing else."""

from trl_rlp.losses.heads import CosineCritic, GaussianHead, PairCritic, latent_head
from trl_rlp.losses.multi_view import (
    contrastive_loss,
    gaussian_kl,
    infomax_loss,
    mib_loss,
    mvi_loss,
    product_pairs,
    symmetric_kl,
)
from trl_rlp.losses.mutual_information import (
    LOWER_BOUNDS,
    ZERO_INFORMATION,
    jsd_lower_bound,
    nce_lower_bound,
    nwj_lower_bound,
)
from trl_rlp.losses.representation import LOSSES, RECIPES, Recipe, RepresentationLoss


__all__ = [
    "LOSSES",
    "LOWER_BOUNDS",
    "RECIPES",
    "ZERO_INFORMATION",
    "CosineCritic",
    "GaussianHead",
    "PairCritic",
    "Recipe",
    "RepresentationLoss",
    "contrastive_loss",
    "gaussian_kl",
    "infomax_loss",
    "jsd_lower_bound",
    "latent_head",
    "mib_loss",
    "mvi_loss",
    "nce_lower_bound",
    "nwj_lower_bound",
    "product_pairs",
    "symmetric_kl",
]
