"""Whitening, advantages and clipped losses of PPO, on the tokens of right-padded completions."""

import torch
from torch.nn.functional import pad

from trl_rlp.losses.kl import require_equal_shapes, require_right_padding


def masked_mean(values: torch.Tensor, mask: torch.Tensor, count: float | torch.Tensor | None = None) -> torch.Tensor:
    """
    Computes the mean over the tokens of a mask, or their share of the mean over a larger number of tokens.

    Args:
        values (`torch.Tensor` of shape `(batch, length)`):
            Losses, or booleans to compute a fraction. Values outside `mask` are ignored, even NaN.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count.
        count (`float` or `torch.Tensor`, *optional*):
            Divisor of the sum, such as the number of tokens in all micro-batches or processes. Defaults to the number
            of tokens in `mask`.

    Returns:
        `torch.Tensor`: A scalar in the unit of `values`, in fp32 or better.

    Raises:
        ValueError: If the shapes differ, or `mask` has no token and `count` is `None`.
    """
    require_equal_shapes(values=values, mask=mask)
    if count is None and not mask.any():
        raise ValueError(
            "`mask` has no token, so there is no mean. Pass `count`, the number of tokens in the whole batch."
        )
    return _to_full_precision(values).masked_fill(~mask, 0).sum() / (mask.sum() if count is None else count)


def masked_moments(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Computes the count, the mean and the sum of squared differences from the mean. Processes can gather and pool them.

    With a large mean, a sum of plain squares would lose its precision in fp32. Squared differences from the mean do
    not.

    Args:
        values (`torch.Tensor` of shape `(batch, length)`):
            Rewards or advantages. Values outside `mask` are ignored, even NaN.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count. AlpacaFarm uses `True` everywhere.

    Returns:
        `torch.Tensor` of shape `(3,)`: The three numbers, in fp32 or better. All are 0 if `mask` has no token.

    Raises:
        ValueError: If the shapes differ.
    """
    require_equal_shapes(values=values, mask=mask)
    values, count = _to_full_precision(values).masked_fill(~mask, 0), mask.sum()
    mean = values.sum() / count.clamp(min=1)
    squares = (values - mean).masked_fill(~mask, 0).square().sum()
    return torch.stack([count.to(mean.dtype), mean, squares])  # (3,)


def pooled_mean_and_variance(moments: torch.Tensor, unbiased: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes the mean and the variance over all tokens of one or several [`masked_moments`].

    Args:
        moments (`torch.Tensor` of shape `(3,)` or `(parts, 3)`):
            Moments of one process, or moments gathered from several processes.
        unbiased (`bool`, *optional*, defaults to `True`):
            Whether the variance is divided by the count minus one, as in TRL 1.12. If `False`, it is divided by the
            count, as in AlpacaFarm.

    Returns:
        `tuple` of `torch.Tensor`: The mean and the variance, two scalars.

    Raises:
        ValueError: If there are fewer than two tokens. With `unbiased=False`, if there is no token.
    """
    counts, means, squares = moments.reshape(-1, 3).unbind(dim=1)  # (parts,)
    count, correction = counts.sum(), 1 if unbiased else 0
    if count <= correction:
        raise ValueError(
            f"`mask` has {int(count)} token(s), but a variance needs at least {correction + 1}. Whiten over more "
            "completions, or turn whitening off."
        )
    mean = (counts * means).sum() / count
    return mean, (squares + counts * (means - mean).square()).sum() / (count - correction)


def whiten(
    values: torch.Tensor, mask: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, shift_mean: bool = True
) -> torch.Tensor:
    r"""
    Scales values to a standard deviation of 1. Their mean becomes 0 or stays the same.

    $$x' = \frac{x - \mu}{\sqrt{\sigma^2 + 10^{-8}}} \quad [+ \mu]$$

    Args:
        values (`torch.Tensor` of shape `(batch, length)`):
            Rewards or advantages. Values outside `mask` are ignored, even NaN.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens to whiten.
        mean, variance (`torch.Tensor`):
            μ and σ², scalars from [`pooled_mean_and_variance`].
        shift_mean (`bool`, *optional*, defaults to `True`):
            Whether to move the mean to 0, as for advantages. If `False`, as for rewards, the mean stays the same. A
            reward of 0 does not stay 0 then.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Whitened values, 0 outside `mask`.

    Relations:
        AlpacaFarm adds 1e-8 to the standard deviation instead. For σ above 0.01, the results differ by a factor of at
        most 1 + 5e-5.
    """
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8) + (0 if shift_mean else mean)
    return whitened.masked_fill(~mask, 0)


@torch.no_grad()
def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Computes the advantage of each token over the critic's value, and the return that the critic should predict.

    $$\hat A_t = \sum_{l \ge 0} (\gamma\lambda)^l \delta_{t+l}, \quad \delta_t = r_t + \gamma V_{t+1} - V_t, \quad
    \hat R_t = \hat A_t + V_t$$

    The value after the end of a completion is 0, also for a completion that was truncated at the maximum length. Both
    results are constants, so no gradient flows into `values`.

    Args:
        rewards (`torch.Tensor` of shape `(batch, length)`):
            Rewards from [`token_rewards`]. Values outside `mask` are ignored, even NaN. This includes a score at a
            position outside `mask`.
        values (`torch.Tensor` of shape `(batch, length)`):
            `V_t`, the critic's value before token `t`, in the unit of `rewards`. Values outside `mask` are ignored.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens of a completion. Right-padded. To match TRL 1.12, pass the mask of
            [`locate_after_last_token`].
        gamma (`float`):
            γ, the discount, in [0, 1].
        lam (`float`):
            λ, in [0, 1]. A low value relies on the critic, a high value on the rewards.

    Returns:
        `tuple` of `torch.Tensor` of shape `(batch, length)`: advantages, not whitened, and returns. Both are in fp32
        or better, and 0 outside `mask`.

    Raises:
        TypeError: If `mask` is not boolean.
        ValueError: If the shapes differ or `mask` is not right-padded.

    Relations:
        With λ = 1, the advantage is the discounted sum of the future rewards minus the value. With λ = 0, it is `δ_t`.

    Reference:
        Eq. 16 of [Schulman et al. 2016](https://arxiv.org/abs/1506.02438).

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import generalized_advantages
    >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> generalized_advantages(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, lam=1.0)
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))

    ```
    """
    require_equal_shapes(rewards=rewards, values=values, mask=mask)
    require_right_padding(mask)
    rewards, values = (_to_full_precision(tensor).masked_fill(~mask, 0) for tensor in (rewards, values))
    errors = rewards + gamma * pad(values[:, 1:], (0, 1)) - values  # (batch, length)
    advantages = torch.zeros_like(errors)
    advantage = torch.zeros_like(errors[:, 0])  # (batch,)
    for position in reversed(range(errors.shape[1])):
        advantage = errors[:, position] + gamma * lam * advantage
        advantages[:, position] = advantage
    return advantages, advantages + values


def clipped_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cliprange: float,
) -> torch.Tensor:
    r"""
    Computes the loss of each token under PPO's clipped objective.

    $$L_t = \max(-\rho_t \hat A_t, -clip(\rho_t, 1 - \epsilon, 1 + \epsilon) \hat A_t), \quad
    \rho_t = \pi(y_t) / \pi_{old}(y_t)$$

    Args:
        log_probs, old_log_probs (`torch.Tensor` of shape `(batch, length)`):
            ln π of the sampled tokens, in nats. `log_probs` are those of the current policy and have a gradient.
            `old_log_probs` are those at rollout time and have none.
        advantages (`torch.Tensor` of shape `(batch, length)`):
            Advantages from [`generalized_advantages`], usually whitened.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count. Inputs outside `mask` change neither the loss nor its gradient.
            They are masked before the computation, because masking only the loss would leave NaN in the gradient.
        cliprange (`float`):
            ε, greater than 0.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Lower is better. It is 0 outside `mask`. Reduce it with
        [`masked_mean`].

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Eq. 7 of [Schulman et al. 2017](https://arxiv.org/abs/1707.06347), negated.
    """
    return torch.maximum(*_policy_losses(log_probs, old_log_probs, advantages, mask, cliprange))


def policy_is_clipped(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cliprange: float,
) -> torch.Tensor:
    """
    Finds the tokens at which [`clipped_policy_loss`] is clipped and has no gradient. It has the same arguments.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Boolean, `False` outside `mask`. Compute the fraction with
        [`masked_mean`].
    """
    return torch.lt(*_policy_losses(log_probs, old_log_probs, advantages, mask, cliprange))


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    cliprange_value: float | None,
) -> torch.Tensor:
    r"""
    Computes half the squared error of the critic at each token. Moving far from the value at rollout time does not
    lower the loss.

    $$L_t = \frac{1}{2} \max\left((V_t - \hat R_t)^2,
    (clip(V_t, V^{old}_t - c, V^{old}_t + c) - \hat R_t)^2\right)$$

    Args:
        values, old_values (`torch.Tensor` of shape `(batch, length)`):
            The critic's values, in the unit of rewards. `values` are the current ones and have a gradient.
            `old_values` are those at rollout time and have none.
        returns (`torch.Tensor` of shape `(batch, length)`):
            Returns from [`generalized_advantages`].
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count. Inputs outside `mask` change neither the loss nor its gradient.
        cliprange_value (`float`, *optional*):
            `c`, in the unit of rewards, greater than 0. `None` turns clipping off.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: At least 0, lower is better. It is 0 outside `mask`.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        [Ziegler et al.
        2019](https://github.com/openai/lm-human-preferences/blob/cbfd210bb8b08f6bc5c26878c10984b90f516c66/lm_human_preferences/train_policy.py),
        in their code only. It is in no paper.
    """
    return torch.maximum(*_value_losses(values, old_values, returns, mask, cliprange_value))


def value_is_clipped(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    cliprange_value: float | None,
) -> torch.Tensor:
    """
    Finds the tokens at which [`clipped_value_loss`] is clipped and has no gradient. It has the same arguments.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Boolean, `False` outside `mask`. Compute the fraction with
        [`masked_mean`].
    """
    return torch.lt(*_value_losses(values, old_values, returns, mask, cliprange_value))


def _policy_losses(log_probs, old_log_probs, advantages, mask, cliprange) -> tuple[torch.Tensor, torch.Tensor]:
    require_equal_shapes(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages, mask=mask)
    ratio = (log_probs - old_log_probs).masked_fill(~mask, 0).exp()
    advantages = advantages.masked_fill(~mask, 0)
    return -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)


def _value_losses(values, old_values, returns, mask, cliprange_value) -> tuple[torch.Tensor, torch.Tensor]:
    require_equal_shapes(values=values, old_values=old_values, returns=returns, mask=mask)
    values, old_values, returns = (tensor.masked_fill(~mask, 0) for tensor in (values, old_values, returns))
    clipped = values
    if cliprange_value is not None:
        clipped = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    return (values - returns).square() / 2, (clipped - returns).square() / 2


def _to_full_precision(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
