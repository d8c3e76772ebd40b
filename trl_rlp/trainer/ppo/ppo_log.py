"""Metrics of a rollout under TRL 1.12's names."""

import torch

from trl_rlp.losses.ppo import masked_mean
from trl_rlp.trainer.ppo.experience import Experience


ROLLOUT_METRICS = (
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


def rollout_metrics(experience: Experience) -> dict[str, torch.Tensor]:
    """
    Computes the metrics of a rollout.

    Args:
        experience ([`Experience`]):
            The rollout of this process.

    Returns:
        `dict[str, torch.Tensor]`: Scalars under the names of [`ROLLOUT_METRICS`].
    """
    return objective_metrics(experience) | critic_metrics(experience)


def objective_metrics(experience: Experience) -> dict[str, torch.Tensor]:
    """
    Computes the objective of the policy, and its parts.

    Args:
        experience ([`Experience`]):
            The rollout of this process.

    Returns:
        `dict[str, torch.Tensor]`: Scalars. `objective/kl` and `objective/entropy` are sums over the tokens of a
        completion, in nats, averaged over completions. `objective/rlhf_reward` is the mean score plus the mean KL
        reward. `val/num_eos_tokens` is the number of completions with a stop token.
    """
    kl_reward = experience.kl_rewards.sum(dim=1).mean()
    log_probs = experience.old_log_probs.masked_fill(~experience.completion_mask, 0)
    return {
        "objective/kl": experience.kl.sum(dim=1).mean(),
        "objective/entropy": -log_probs.sum(dim=1).mean(),
        "objective/non_score_reward": kl_reward,
        "objective/scores": experience.scores.mean(),
        "objective/rlhf_reward": kl_reward + experience.scores.mean(),
        "val/num_eos_tokens": experience.finished.sum(),
    }


def critic_metrics(experience: Experience) -> dict[str, torch.Tensor]:
    """
    Computes metrics of how well the critic predicts the returns.

    Args:
        experience ([`Experience`]):
            The rollout of this process.

    Returns:
        `dict[str, torch.Tensor]`: Scalars. The explained variance is at most 1, for a perfect critic. It is 0 for a
        critic that predicts the mean, and negative for a worse one.
    """
    values, returns, mask = experience.old_values, experience.returns, experience.value_mask
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
    Converts sums to means, and the mean of the squared ratios to the variance of the ratios, which TRL 1.12 logged.

    Args:
        sums (`dict[str, tuple[float, float]]`):
            Sum and count by name.

    Returns:
        `dict[str, float]`: Means. `val/ratio_var` is the unbiased variance over micro-batches.
    """
    means = {name: total / count for name, (total, count) in sums.items() if count}
    squared = means.pop("val/ratio_squared", None)
    if squared is not None:
        count = sums["val/ratio"][1]
        means["val/ratio_var"] = max(0.0, squared - means["val/ratio"] ** 2) * count / max(count - 1, 1)
    return means
