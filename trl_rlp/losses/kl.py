"""Token rewards: a KL penalty at every token, and the score at the end of the completion."""

import math
from collections.abc import Callable

import torch


KL_ESTIMATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: log_ratio.square() / 2,
    "k3": lambda log_ratio: (-log_ratio).expm1() + log_ratio,
    "clamped": lambda log_ratio: log_ratio.clamp(min=0),
}
"""KL estimators by name. Each maps `ln π - ln π_ref` of a sampled token to an estimate of the KL divergence."""


def kl_estimate(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, estimator: str) -> torch.Tensor:
    r"""
    Estimates the KL divergence of the policy from the reference at each sampled token.

    $$k_1 = \ell, \quad k_2 = \ell^2 / 2, \quad k_3 = e^{-\ell} - 1 + \ell, \quad k_{clamped} = \max(\ell, 0),
    \qquad \ell = \ln \pi(y_t) - \ln \pi_{ref}(y_t)$$

    The estimators differ for tokens that the policy sampled:

    - `k1` is unbiased. It is negative where the reference gives the token a higher probability.
    - `k2` is biased. The bias is small while the policy is close to the reference.
    - `k3` is unbiased and never negative. It varies less than `k1` while the policy is close to the reference. It
      explodes at a token to which the reference gives a much higher probability.
    - `clamped` sets every negative `k1` to 0, so it overestimates.

    Args:
        log_probs (`torch.Tensor` of shape `(batch, length)`):
            ln π of the sampled tokens, in nats, at most 0.
        ref_log_probs (`torch.Tensor` of shape `(batch, length)`):
            ln π_ref of the same tokens.
        estimator (`str`):
            A key of [`KL_ESTIMATORS`].

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Nats per token. Padding is not masked.

    Raises:
        KeyError: If `estimator` is not a key of [`KL_ESTIMATORS`].
        ValueError: If the shapes differ.

    Relations:
        `k2` against the log-probabilities at rollout time is the "approximate KL" that PPO trainers log.

    Reference:
        k1, k2 and k3: [Schulman 2020](http://joschu.net/blog/kl-approx.html). `clamped`: [the code of
        AlpacaFarm](https://github.com/tatsu-lab/alpaca_farm/blob/30717ddae735365de756ee2085191b491a71788d/src/alpaca_farm/rl/ppo_trainer.py#L72).

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import kl_estimate
    >>> kl_estimate(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.0]]), "clamped")
    tensor([[2., 0.]])

    ```
    """
    require_equal_shapes(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return KL_ESTIMATORS[estimator](log_probs - ref_log_probs)


def next_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, episodes: int) -> float:
    r"""
    Computes the coefficient of the KL penalty for the next rollout. It moves the KL divergence toward a target.

    $$\beta_{t+1} = \beta_t \left(1 + \frac{n}{h}\, clip\left(\frac{KL}{KL_{target}} - 1, -0.2, 0.2\right)\right)$$

    Args:
        kl_coef (`float`):
            β of the last rollout, greater than 0.
        kl (`float`):
            KL divergence of the last rollout, in nats per completion, not per token: the sum over the tokens of a
            completion, averaged over the completions of all processes.
        target (`float`):
            Target in nats per completion, greater than 0.
        horizon (`float`):
            `h`, in episodes, greater than 0. An error of 0.2 that lasts for one horizon changes β by about a fifth.
        episodes (`int`):
            `n`, the number of completions in the last rollout, on all processes. It must be less than `5 * horizon`,
            or β could become 0 or negative.

    Returns:
        `float`: β, greater than 0.

    Raises:
        ValueError: If `kl` is not finite, `target` is not positive, or `horizon` is too short.

    Relations:
        `episodes / horizon` is `K_β` of the paper (0.1) and `k_beta` of AlpacaFarm.

    Reference:
        Section 2.2 of [Ziegler et al. 2019](https://arxiv.org/abs/1909.08593). The horizon is that of [their
        code](https://github.com/openai/lm-human-preferences/blob/cbfd210bb8b08f6bc5c26878c10984b90f516c66/lm_human_preferences/train_policy.py#L120).

    Example:

    ```python
    >>> from trl_rlp.losses import next_kl_coef
    >>> round(next_kl_coef(0.2, kl=9.0, target=6.0, horizon=10_000, episodes=1_000), 6)  # 0.2 (1 + 0.1 * 0.2)
    0.204

    ```
    """
    if not math.isfinite(kl):
        raise ValueError(f"`kl` must be finite, got {kl}. Look for NaN or infinite log-probabilities in the rollout.")
    if target <= 0:
        raise ValueError(f"`target` must be greater than 0 nats, got {target}. Raise it, or keep `kl_coef` fixed.")
    if episodes >= 5 * horizon:
        raise ValueError(f"`horizon` must be longer than {episodes} episodes / 5, got {horizon}. Raise it.")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


def locate_last_token(mask: torch.Tensor) -> torch.Tensor:
    """
    Finds the position of the last token of each completion, where its score is added.

    Args:
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens of a completion, including EOS. Right-padded.

    Returns:
        `torch.Tensor` of shape `(batch,)`: Positions from 0 to `length - 1`.

    Raises:
        TypeError: If `mask` is not boolean.
        ValueError: If `mask` is not right-padded or a row has no token.
    """
    require_right_padding(mask)
    empty = ~mask.any(dim=1)  # (batch,)
    if empty.any():
        raise ValueError(f"`mask` has no token in row(s) {empty.nonzero()[:, 0].tolist()}. Drop empty completions.")
    return mask.sum(dim=1) - 1  # (batch,)


def locate_after_last_token(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the position after the last token of each completion, and extends the mask by this position.

    TRL 1.12 adds the score at this position and trains the value there, so the score is discounted by γλ once more
    before it reaches the last token. If a completion is as long as the batch, there is no such position and the last
    token gets the score. Use this function only for runs that must match TRL 1.12. Otherwise [`locate_last_token`] is
    correct.

    Args:
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens of a completion. Right-padded. The mask of TRL 1.12 ends before the first pad
            token. If the pad token is EOS, this mask excludes EOS, and a completion of EOS alone is an empty row.

    Returns:
        `tuple` of `torch.Tensor`: Positions of shape `(batch,)`, from 0 to `length - 1`, and the boolean mask of
        values and rewards, of shape `(batch, length)`. The policy loss and the whitening of advantages still use
        `mask`.

    Raises:
        TypeError: If `mask` is not boolean.
        ValueError: If `mask` is not right-padded.

    Reference:
        [TRL
        1.12](https://github.com/huggingface/trl/blob/v1.12.0/trl/experimental/ppo/ppo_trainer.py#L768), lines 768 and
        778.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import locate_after_last_token
    >>> positions, value_mask = locate_after_last_token(torch.tensor([[True, False, False], [True, True, True]]))
    >>> positions.tolist(), value_mask.tolist()
    ([1, 2], [[True, True, False], [True, True, True]])

    ```
    """
    require_right_padding(mask)
    value_mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)  # (batch, length)
    return locate_last_token(value_mask), value_mask


def token_rewards(
    scores: torch.Tensor,
    kl: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
    score_positions: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Computes the reward of each token: minus the KL penalty, plus the score at the end of the completion.

    $$r_t = -\beta\, kl_t + score \cdot [t = T]$$

    Args:
        scores (`torch.Tensor` of shape `(batch,)`):
            One score per completion, in the reward model's units. Higher is better.
        kl (`torch.Tensor` of shape `(batch, length)`):
            Nats per token, from [`kl_estimate`]. Values outside `mask` are ignored, even NaN.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens of a completion. Right-padded.
        kl_coef (`float`):
            β, at least 0.
        score_positions (`torch.Tensor` of shape `(batch,)`, *optional*):
            Positions of the scores, inside or outside `mask`. Defaults to [`locate_last_token`].

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Rewards. They are 0 outside `mask`, except for a score at a position
        outside it.

    Raises:
        TypeError: If `mask` is not boolean.
        ValueError: If a shape is wrong, or if `score_positions` is `None` and [`locate_last_token`] raises.

    Reference:
        Eq. 2 of [Ziegler et al. 2019](https://arxiv.org/abs/1909.08593), applied per token as in [their
        code](https://github.com/openai/lm-human-preferences/blob/cbfd210bb8b08f6bc5c26878c10984b90f516c66/lm_human_preferences/train_policy.py#L149).
    """
    require_equal_shapes(kl=kl, mask=mask)
    require_equal_shapes(scores=scores, completions=mask[:, 0])
    positions = locate_last_token(mask) if score_positions is None else score_positions
    penalties = (-kl_coef * kl).masked_fill(~mask, 0)  # (batch, length)
    return penalties.scatter_add(1, positions[:, None], scores[:, None].to(penalties.dtype))


def require_right_padding(mask: torch.Tensor) -> None:
    """Raises an error if a mask is not boolean or has a token after padding."""
    if mask.dtype != torch.bool:
        raise TypeError(f"`mask` must be a boolean mask, got `{mask.dtype}`. Compare, or call `.bool()`.")
    follows_padding = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1)  # (batch,)
    if follows_padding.any():
        raise ValueError(
            f"`mask` must be right-padded, got a token after padding in row(s) "
            f"{follows_padding.nonzero()[:, 0].tolist()}. Pad completions on the right."
        )


def require_equal_shapes(**tensors: torch.Tensor) -> None:
    """Raises an error if the shapes differ. Otherwise torch would broadcast them and return a wrong result."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"`{name}` {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"Shapes must be equal, got {shapes}.")
