"""PPO's loss of a micro-batch, of policy and critic together, and what it logs."""

import torch

from trl_rlp.losses.kl import kl_estimate
from trl_rlp.losses.ppo import (
    clipped_policy_loss,
    clipped_value_loss,
    masked_mean,
    policy_is_clipped,
    value_is_clipped,
)
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


LOSS_TERMS = (
    "loss/policy_avg",
    "loss/value_avg",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/ratio_squared",
)


def ppo_loss(
    batch: dict[str, torch.Tensor],
    log_probs: torch.Tensor,
    entropies: torch.Tensor,
    values: torch.Tensor,
    args: RLPPPOConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    r"""
    Gives the part of a micro-batch in the loss of its optimizer step.

    $$L = \frac{1}{N} \sum_t L^{CLIP}_t + c_{vf} \frac{1}{N_V} \sum_t L^{VF}_t$$

    Args:
        batch (`dict[str, torch.Tensor]`):
            What [`Rollout`] dealt; its `normalizers` are N and N_V.
        log_probs (`torch.Tensor` of shape `(batch, length)`):
            Of the policy in training.
        entropies (`torch.Tensor` of shape `(batch, length)`):
            Likewise, for the log.
        values (`torch.Tensor` of shape `(batch, length)`):
            Of the critic in training.
        args ([`RLPPPOConfig`]):
            Settings of the run.

    Returns:
        `tuple[torch.Tensor, dict[str, torch.Tensor]]`: a scalar, and the terms of [`LOSS_TERMS`] as means over the
        tokens of the micro-batch.
    """
    mask, value_mask = batch["completion_mask"], batch["value_mask"]
    old_log_probs, advantages = batch["old_log_probs"], batch["advantages"]
    old_values, returns = batch["old_values"], batch["returns"]
    policy_tokens = clipped_policy_loss(log_probs, old_log_probs, advantages, mask, args.cliprange)
    if "importance_sampling_ratio" in batch:
        policy_tokens = policy_tokens * batch["importance_sampling_ratio"]
    value_tokens = clipped_value_loss(values, old_values, returns, value_mask, args.cliprange_value)
    policy_count, value_count = batch["normalizers"]
    loss = masked_mean(policy_tokens, mask, policy_count)
    loss = loss + args.vf_coef * masked_mean(value_tokens, value_mask, value_count)
    with torch.no_grad():
        # A micro-batch whose completions are all EOS has no token where the former trainer's masks leave EOS out.
        count, own_value_count = mask.sum().clamp(min=1), value_mask.sum().clamp(min=1)
        ratio = masked_mean((log_probs - old_log_probs).exp(), mask, count)
        is_clipped = policy_is_clipped(log_probs, old_log_probs, advantages, mask, args.cliprange)
        value_clipped = value_is_clipped(values, old_values, returns, value_mask, args.cliprange_value)
        terms = [
            masked_mean(policy_tokens, mask, count),
            masked_mean(value_tokens, value_mask, own_value_count),
            masked_mean(kl_estimate(log_probs, old_log_probs, "k2"), mask, count),
            masked_mean(is_clipped, mask, count),
            masked_mean(entropies, mask, count),
            masked_mean(value_clipped, value_mask, own_value_count),
            ratio,
            ratio.square(),
        ]
    return loss, dict(zip(LOSS_TERMS, terms, strict=True))
