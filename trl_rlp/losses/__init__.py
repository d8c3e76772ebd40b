"""Representation losses of RLP and losses of PPO, as functions of tensors. They depend on torch only."""

from trl_rlp.losses.heads import CosineCritic, GaussianHead, PairCritic, latent_head
from trl_rlp.losses.kl import (
    KL_ESTIMATORS,
    kl_estimate,
    locate_after_last_token,
    locate_last_token,
    next_kl_coef,
    token_rewards,
)
from trl_rlp.losses.log_probs import token_log_probs
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
from trl_rlp.losses.ppo import (
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    masked_mean,
    masked_moments,
    policy_is_clipped,
    pooled_mean_and_variance,
    value_is_clipped,
    whiten,
)
from trl_rlp.losses.representation import LOSSES, RECIPES, Recipe, RepresentationLoss


__all__ = [
    "KL_ESTIMATORS",
    "LOSSES",
    "LOWER_BOUNDS",
    "RECIPES",
    "ZERO_INFORMATION",
    "CosineCritic",
    "GaussianHead",
    "PairCritic",
    "Recipe",
    "RepresentationLoss",
    "clipped_policy_loss",
    "clipped_value_loss",
    "contrastive_loss",
    "gaussian_kl",
    "generalized_advantages",
    "infomax_loss",
    "jsd_lower_bound",
    "kl_estimate",
    "latent_head",
    "locate_after_last_token",
    "locate_last_token",
    "masked_mean",
    "masked_moments",
    "mib_loss",
    "mvi_loss",
    "nce_lower_bound",
    "next_kl_coef",
    "nwj_lower_bound",
    "policy_is_clipped",
    "pooled_mean_and_variance",
    "product_pairs",
    "symmetric_kl",
    "token_log_probs",
    "token_rewards",
    "value_is_clipped",
    "whiten",
]
