"""PPO's loss of a micro-batch, for policy and value model together."""

import torch

from trl_rlp.losses.kl import kl_estimate
from trl_rlp.losses.ppo import (
    clipped_policy_loss,
    clipped_value_loss,
    masked_mean,
    policy_is_clipped,
    value_is_clipped,
)
from trl_rlp.trainer.ppo.experience import MicroBatch
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


LOSS_METRICS = (
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
    micro_batch: MicroBatch,
    log_probs: torch.Tensor,
    entropies: torch.Tensor,
    values: torch.Tensor,
    args: PPOConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    r"""
    Computes the share of a micro-batch in the loss of its optimizer step.

    $$L = \frac{1}{N} \sum_t L^{CLIP}_t + c_{vf} \frac{1}{N_V} \sum_t L^{VF}_t$$

    Args:
        micro_batch ([`MicroBatch`]):
            The micro-batch. Its normalizers are N and N_V.
        log_probs (`torch.Tensor` of shape `(batch, length)`):
            Log-probabilities of the tokens under the policy in training, in nats.
        entropies (`torch.Tensor` of shape `(batch, length)`):
            Entropies of the policy in training, in nats. Only logged.
        values (`torch.Tensor` of shape `(batch, length)`):
            Values of the critic in training.
        args ([`PPOConfig`]):
            Provides `cliprange`, `cliprange_value` and `vf_coef`.

    Returns:
        `tuple[torch.Tensor, dict[str, torch.Tensor]]`: The loss, a scalar, and the metrics of [`LOSS_METRICS`], each a
        mean over the tokens of the micro-batch.

    Reference:
        Eq. 7 and 9 of [Schulman et al. 2017](https://arxiv.org/abs/1707.06347).
    """
    batch = micro_batch.experience
    mask, value_mask = batch.completion_mask, batch.value_mask
    policy_losses = clipped_policy_loss(log_probs, batch.old_log_probs, batch.advantages, mask, args.cliprange)
    if batch.importance_sampling_ratio is not None:
        policy_losses = policy_losses * batch.importance_sampling_ratio  # (batch, length)
    value_losses = clipped_value_loss(values, batch.old_values, batch.returns, value_mask, args.cliprange_value)
    loss = masked_mean(policy_losses, mask, micro_batch.policy_normalizer)
    loss = loss + args.vf_coef * masked_mean(value_losses, value_mask, micro_batch.value_normalizer)
    with torch.no_grad():
        # With `score_position="after_last_token"` and pad = EOS, a micro-batch of EOS alone has no policy token.
        count, value_count = mask.sum().clamp(min=1), value_mask.sum().clamp(min=1)
        is_clipped = policy_is_clipped(log_probs, batch.old_log_probs, batch.advantages, mask, args.cliprange)
        is_value_clipped = value_is_clipped(values, batch.old_values, batch.returns, value_mask, args.cliprange_value)
        ratio = masked_mean((log_probs - batch.old_log_probs).exp(), mask, count)
        metrics = (
            masked_mean(policy_losses, mask, count),
            masked_mean(value_losses, value_mask, value_count),
            masked_mean(kl_estimate(log_probs, batch.old_log_probs, "k2"), mask, count),
            masked_mean(is_clipped, mask, count),
            masked_mean(entropies, mask, count),
            masked_mean(is_value_clipped, value_mask, value_count),
            ratio,
            ratio.square(),
        )
    return loss, dict(zip(LOSS_METRICS, metrics, strict=True))
