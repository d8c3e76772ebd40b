"""What a rollout is like, in the former trainer's words and a few more."""

import torch

from trl_rlp.losses.ppo import masked_mean


ROLLOUT_TERMS = (
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/scores",
    "objective/rlhf_reward",
    "val/num_eos_tokens",
    "val/values",
    "val/returns",
    "val/explained_variance",
)


def objective_terms(
    batch: dict[str, torch.Tensor], scores: torch.Tensor, finished: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    Gives what the policy is trained for, and its parts.

    Args:
        batch (`dict[str, torch.Tensor]`):
            `old_log_probs`, `kl`, `penalties` and `completion_mask` of shape `(batch, length)`.
        scores (`torch.Tensor` of shape `(batch,)`):
            As they enter the rewards.
        finished (`torch.Tensor` of shape `(batch,)`):
            Boolean: whether the completion ended in a stop token.

    Returns:
        `dict[str, torch.Tensor]`: scalars; means over completions of sums over tokens, but for the scores, and the
        number of completions with a stop token.
    """
    penalty = batch["penalties"].sum(dim=1).mean()
    log_probs = batch["old_log_probs"].masked_fill(~batch["completion_mask"], 0)
    return {
        "objective/kl": batch["kl"].sum(dim=1).mean(),
        "objective/entropy": -log_probs.sum(dim=1).mean(),
        "objective/non_score_reward": penalty,
        "objective/scores": scores.mean(),
        "objective/rlhf_reward": penalty + scores.mean(),
        "val/num_eos_tokens": finished.sum(),
    }


def critic_terms(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Gives how well the critic knows the returns.

    Args:
        batch (`dict[str, torch.Tensor]`):
            `old_values`, `returns` and `value_mask` of shape `(batch, length)`.

    Returns:
        `dict[str, torch.Tensor]`: scalars; the explained variance is 1 for a perfect critic, 0 for one that gives the
        mean, and below 0 for a worse one.
    """
    values, returns, mask = batch["old_values"], batch["returns"], batch["value_mask"]
    mean = masked_mean(returns, mask)
    variance = masked_mean((returns - mean).square(), mask)
    error = returns - values
    unexplained = masked_mean((error - masked_mean(error, mask)).square(), mask)
    return {
        "val/values": masked_mean(values, mask),
        "val/returns": mean,
        "val/explained_variance": 1 - unexplained / variance.clamp(min=1e-8),
    }


def add_ratio_variance(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
    """
    Turns sums into means, and the squares of the ratios into the variance that the former trainer logged.

    Args:
        sums (`dict[str, tuple[float, float]]`):
            Sum and count by name.

    Returns:
        `dict[str, float]`: means; `val/ratio_var` is the unbiased variance over micro-batches.
    """
    means = {name: total / count for name, (total, count) in sums.items() if count}
    squared = means.pop("val/ratio_squared", None)
    if squared is not None:
        count = sums["val/ratio"][1]
        means["val/ratio_var"] = max(0.0, squared - means["val/ratio"] ** 2) * count / max(count - 1, 1)
    return means
