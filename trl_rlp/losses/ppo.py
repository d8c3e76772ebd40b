"""The arithmetic of PPO on the tokens of right-padded completions: whitening, advantages, clipped losses."""

import torch
from torch.nn.functional import pad

from trl_rlp.losses.kl import require_equal_shapes, require_right_padding


def masked_mean(values: torch.Tensor, mask: torch.Tensor, count: float | torch.Tensor | None = None) -> torch.Tensor:
    """
    Gives the mean over the tokens of a mask, or their part of the mean over a larger count.

    Args:
        values (`torch.Tensor` of shape `(batch, length)`):
            Losses, or booleans for a fraction. Outside `mask` they do not matter, not even NaN.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count.
        count (`float` or `torch.Tensor`, *optional*):
            What to divide the sum by: the tokens of all micro-batches or processes. By default those of `mask`.

    Returns:
        `torch.Tensor`: a scalar in the unit of `values`, in fp32 or better.

    Raises:
        ValueError: if the shapes differ, or `mask` holds no token and there is no `count`.
    """
    require_equal_shapes(values=values, mask=mask)
    if count is None and not mask.any():
        raise ValueError("`mask` holds no token, so there is no mean. Give `count`, the tokens of the whole batch.")
    return _full_precision(values).masked_fill(~mask, 0).sum() / (mask.sum() if count is None else count)


def masked_moments(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Gives the count, the mean and the sum of squared deviations from it, which processes can gather and pool.

    In fp32 a sum of plain squares would lose its digits where the mean is large; squared deviations do not.

    Args:
        values (`torch.Tensor` of shape `(batch, length)`):
            Rewards or advantages. Outside `mask` they do not matter, not even NaN.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count; `True` everywhere is AlpacaFarm's way.

    Returns:
        `torch.Tensor` of shape `(3,)`: in fp32 or better; zeros where `mask` holds no token.

    Raises:
        ValueError: if the shapes differ.
    """
    require_equal_shapes(values=values, mask=mask)
    values, count = _full_precision(values).masked_fill(~mask, 0), mask.sum()
    mean = values.sum() / count.clamp(min=1)
    squares = (values - mean).masked_fill(~mask, 0).square().sum()
    return torch.stack([count.to(mean.dtype), mean, squares])  # (3,)


def pooled_mean_and_variance(moments: torch.Tensor, unbiased: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gives the mean and the variance of all tokens behind one or several [`masked_moments`].

    Args:
        moments (`torch.Tensor` of shape `(3,)` or `(parts, 3)`):
            Of one process, or gathered from several.
        unbiased (`bool`, *optional*, defaults to `True`):
            Divide by the count minus one, as TRL 1.12 does, or by the count, as AlpacaFarm does.

    Returns:
        `tuple` of `torch.Tensor`: two scalars.

    Raises:
        ValueError: if there are fewer than two tokens, or none where `unbiased` is `False`.
    """
    counts, means, squares = moments.reshape(-1, 3).unbind(dim=1)  # (parts,)
    count, correction = counts.sum(), 1 if unbiased else 0
    if count <= correction:
        raise ValueError(
            f"`mask` holds {int(count)} token(s), but a variance needs at least {correction + 1}. Whiten "
            "over more completions, or turn whitening off."
        )
    mean = (counts * means).sum() / count
    return mean, (squares + counts * (means - mean).square()).sum() / (count - correction)


def whiten(
    values: torch.Tensor, mask: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, shift_mean: bool = True
) -> torch.Tensor:
    r"""
    Gives values scaled to a standard deviation of 1, about 0 or about the mean that they had.

    $$x' = \frac{x - \mu}{\sqrt{\sigma^2 + 10^{-8}}} \quad [+ \mu]$$

    Args:
        values (`torch.Tensor` of shape `(batch, length)`):
            Rewards or advantages. Outside `mask` they do not matter, not even NaN.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens to whiten.
        mean, variance (`torch.Tensor`):
            μ and σ², scalars from [`pooled_mean_and_variance`].
        shift_mean (`bool`, *optional*, defaults to `True`):
            Move the mean to 0, the way of advantages. `False`, the way of rewards, keeps the mean: a reward of 0 does
            not stay 0.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: whitened values, 0 outside `mask`.

    Relations:
        AlpacaFarm adds 1e-8 to the standard deviation, which is the same to a factor of 1 + 5e-5 where σ exceeds 0.01.
    """
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8) + (0 if shift_mean else mean)
    return whitened.masked_fill(~mask, 0)


@torch.no_grad()
def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Gives the advantage of each token over the critic's expectation, and the return that the critic should expect.

    $$\hat A_t = \sum_{l \ge 0} (\gamma\lambda)^l \delta_{t+l}, \quad \delta_t = r_t + \gamma V_{t+1} - V_t, \quad
    \hat R_t = \hat A_t + V_t$$

    The value after the end of a completion is 0, also where the completion was cut off for its length. Both results
    are constants: no gradient flows into `values`.

    Args:
        rewards (`torch.Tensor` of shape `(batch, length)`):
            From [`token_rewards`]. Outside `mask` they do not matter, not even NaN; a score put there is lost.
        values (`torch.Tensor` of shape `(batch, length)`):
            `V_t`, the critic's value before token `t`, in the unit of `rewards`; likewise.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens of a completion; right-padded. For TRL 1.12's numbers the mask of
            [`after_last_token`].
        gamma (`float`):
            γ, the discount, in [0, 1].
        lam (`float`):
            λ, in [0, 1]. Low leans on the critic, high on the rewards.

    Returns:
        `tuple` of `torch.Tensor` of shape `(batch, length)`: advantages, not whitened, and returns, in fp32 or better;
        0 outside `mask`.

    Raises:
        TypeError: if `mask` is not boolean.
        ValueError: if the shapes differ or `mask` is not right-padded.

    Relations:
        With λ = 1 the advantage is the discounted sum of the rewards to come minus the value; with λ = 0 it is `δ_t`.

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
    rewards, values = (_full_precision(tensor).masked_fill(~mask, 0) for tensor in (rewards, values))
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
    Gives the loss of each token under PPO's clipped objective.

    $$L_t = \max(-\rho_t \hat A_t, -clip(\rho_t, 1 - \epsilon, 1 + \epsilon) \hat A_t), \quad
    \rho_t = \pi(y_t) / \pi_{old}(y_t)$$

    Args:
        log_probs, old_log_probs (`torch.Tensor` of shape `(batch, length)`):
            ln π of the sampled tokens, in nats: now, with a gradient, and at rollout time, without one.
        advantages (`torch.Tensor` of shape `(batch, length)`):
            From [`generalized_advantages`], as a rule whitened.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count. What lies outside changes neither the loss nor its gradient,
            where masking a finished loss would leave NaN in the gradient.
        cliprange (`float`):
            ε, greater than 0.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: lower is better, 0 outside `mask`. Reduce it with [`masked_mean`].

    Raises:
        ValueError: if the shapes differ.

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
    Says at which tokens [`clipped_policy_loss`], given the same, is clipped and has no gradient.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: boolean, `False` outside `mask`; [`masked_mean`] gives the fraction.
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
    Gives half the squared error of the critic at each token, with no reward for moving far from the value at rollout.

    $$L_t = \frac{1}{2} \max\left((V_t - \hat R_t)^2,
    (clip(V_t, V^{old}_t - c, V^{old}_t + c) - \hat R_t)^2\right)$$

    Args:
        values, old_values (`torch.Tensor` of shape `(batch, length)`):
            The critic's values, in the unit of rewards: now, with a gradient, and at rollout time, without one.
        returns (`torch.Tensor` of shape `(batch, length)`):
            From [`generalized_advantages`].
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens that count. What lies outside changes neither the loss nor its gradient.
        cliprange_value (`float`, *optional*):
            `c`, in the unit of rewards, greater than 0. `None` for no clipping.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: at least 0, lower is better, 0 outside `mask`.

    Raises:
        ValueError: if the shapes differ.

    Reference:
        [Ziegler et al.
        2019](https://github.com/openai/lm-human-preferences/blob/cbfd210bb8b08f6bc5c26878c10984b90f516c66/lm_human_preferences/train_policy.py),
        in their code only: no paper has it.
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
    Says at which tokens [`clipped_value_loss`], given the same, is clipped and has no gradient.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: boolean, `False` outside `mask`; [`masked_mean`] gives the fraction.
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
    nearby = values
    if cliprange_value is not None:
        nearby = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    return (values - returns).square() / 2, (nearby - returns).square() / 2


def _full_precision(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
