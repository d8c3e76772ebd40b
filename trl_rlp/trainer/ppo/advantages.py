"""From the completions and scores of a rollout to its experience: token rewards, advantages and returns."""

import torch
from accelerate import Accelerator

from trl_rlp.losses.kl import kl_estimate, locate_after_last_token, locate_last_token, token_rewards
from trl_rlp.losses.ppo import generalized_advantages, masked_moments, pooled_mean_and_variance, whiten
from trl_rlp.trainer.ppo.experience import Experience
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.token_models import TokenModels, join_tokens


def build_experience(
    generated: dict[str, torch.Tensor],
    scores: torch.Tensor,
    models: TokenModels,
    state: PPOState,
    finish_token_ids: list[int],
    pad_token_id: int,
) -> Experience:
    """
    Builds the experience of a rollout: evaluates the tokens, and computes token rewards and advantages from scores.

    Args:
        generated (`dict[str, torch.Tensor]`):
            Tensors from GRPO: `prompt_ids` and `prompt_mask` of shape `(batch, prompt_length)`, `completion_ids` and
            `completion_mask` of shape `(batch, length)`, and with vLLM `importance_sampling_ratio`.
        scores (`torch.Tensor` of shape `(batch,)`):
            Weighted sum of the reward functions.
        models ([`TokenModels`]):
            Policy, reference policy and critic.
        state ([`PPOState`]):
            Provides `kl_coef` and `value_shift`. Its statistics of scores are updated.
        finish_token_ids (`list[int]`):
            Tokens that finish a completion.
        pad_token_id (`int`):
            Pad token of the policy. With `score_position="after_last_token"` a completion ends before it.

    Returns:
        [`Experience`]: The rollout of this process.
    """
    args, accelerator = models.args, models.accelerator
    completion_ids, mask = generated["completion_ids"], generated["completion_mask"].bool()
    finished = contains_token(completion_ids, mask, finish_token_ids)
    if args.score_position == "after_last_token":
        mask = mask & mask_before_pad(completion_ids, pad_token_id)
    tokens = join_tokens(generated["prompt_ids"], generated["prompt_mask"], completion_ids, mask)
    log_probs, ref_log_probs, values = models.evaluate_rollout(tokens)  # (batch, length) each
    scores = shape_scores(scores, finished, args, state, accelerator)
    kl = kl_estimate(log_probs, ref_log_probs, args.kl_estimator).masked_fill(~mask, 0)  # (batch, length)
    known_scores = scores - state.shaped_value_shift(args)  # (batch,), on the scale that the critic has learned
    advantages, returns, value_mask = compute_advantages(
        known_scores, kl, values, mask, args, state.kl_coef, accelerator
    )
    return Experience(
        prompt_ids=generated["prompt_ids"],
        prompt_mask=generated["prompt_mask"],
        completion_ids=completion_ids,
        completion_mask=mask,
        old_log_probs=log_probs,
        advantages=advantages,
        importance_sampling_ratio=generated.get("importance_sampling_ratio"),
        old_values=values,
        returns=returns,
        value_mask=value_mask,
        scores=scores,
        finished=finished,
        kl=kl,
        kl_rewards=-state.kl_coef * kl,
    )


def contains_token(completion_ids: torch.Tensor, completion_mask: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
    """
    Checks which completions contain at least one of the given tokens.

    Args:
        completion_ids (`torch.Tensor` of shape `(batch, length)`):
            Token ids.
        completion_mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at tokens.
        token_ids (`list[int]`):
            Tokens to look for, for example stop tokens.

    Returns:
        `torch.Tensor` of shape `(batch,)`: Boolean, `True` for completions with such a token.
    """
    wanted = torch.tensor(token_ids, device=completion_ids.device)
    return (torch.isin(completion_ids, wanted) & completion_mask).any(dim=1)


def mask_before_pad(completion_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """
    Computes TRL 1.12's mask of completions, which selects the tokens before the first pad token.

    A pad token that the policy sampled also ends the completion. If the pad token is the EOS token, the mask excludes
    EOS.

    Args:
        completion_ids (`torch.Tensor` of shape `(batch, length)`):
            Token ids.
        pad_token_id (`int`):
            The pad token.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Boolean, `True` before the first pad token.
    """
    return (completion_ids == pad_token_id).cumsum(dim=1) == 0


def shape_scores(
    scores: torch.Tensor, finished: torch.Tensor, args: PPOConfig, state: PPOState, accelerator: Accelerator
) -> torch.Tensor:
    """
    Normalizes the scores, clips them, and subtracts the penalty for completions without a stop token.

    Args:
        scores (`torch.Tensor` of shape `(batch,)`):
            Weighted sum of the reward functions.
        finished (`torch.Tensor` of shape `(batch,)`):
            Boolean, whether the completion has a stop token.
        args ([`PPOConfig`]):
            Provides `normalize_rewards`, `reward_clip` and `missing_eos_penalty`.
        state ([`PPOState`]):
            Its statistics of scores are updated.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Returns:
        `torch.Tensor` of shape `(batch,)`: Scores to add to the token rewards.
    """
    if args.normalize_rewards:
        # Scores that are not finite must not enter the statistics of the whole run.
        moments = masked_moments(scores[:, None], scores.isfinite()[:, None])
        scores = scores / state.add_scores(accelerator.gather(moments[None]))
    if args.reward_clip is not None:
        clipped = scores.clamp(-args.reward_clip, args.reward_clip)
        scores = clipped.where(scores.isfinite(), torch.nan)  # an overflow must not become the best score
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * ~finished
    return scores


def compute_advantages(
    scores: torch.Tensor,
    kl: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    args: PPOConfig,
    kl_coef: float,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Computes advantages and returns. Whitening uses the mean and standard deviation over all processes.

    Args:
        scores (`torch.Tensor` of shape `(batch,)`):
            Result of [`shape_scores`].
        kl (`torch.Tensor` of shape `(batch, length)`):
            KL divergence of each token in nats, 0 outside `mask`.
        values (`torch.Tensor` of shape `(batch, length)`):
            Values of the critic.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the tokens of the completions, which are padded on the right.
        args ([`PPOConfig`]):
            Configuration of the run.
        kl_coef (`float`):
            Weight of the KL divergence in this rollout.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]` of shape `(batch, length)` each: Whitened advantages,
        returns, and the mask of the values.
    """
    if args.score_position == "after_last_token":
        positions, value_mask = locate_after_last_token(mask)
    else:
        positions, value_mask = locate_last_token(mask), mask
    rewards = token_rewards(scores, kl, mask, kl_coef, positions)
    if args.whiten_rewards:
        rewards = _whiten_over_processes(rewards, value_mask, args, accelerator, shift_mean=False)
    advantages, returns = generalized_advantages(rewards, values, value_mask, args.gamma, args.lam)
    return _whiten_over_processes(advantages, mask, args, accelerator), returns, value_mask


def _whiten_over_processes(
    values: torch.Tensor, mask: torch.Tensor, args: PPOConfig, accelerator: Accelerator, shift_mean: bool = True
) -> torch.Tensor:
    moments = accelerator.gather(masked_moments(values, mask)[None])  # (processes, 3)
    if moments[:, 0].sum() < 2:
        # The last evaluation batch may be a single token, which has no standard deviation.
        return values.masked_fill(~mask, 0) * (not shift_mean)
    mean, variance = pooled_mean_and_variance(moments, unbiased=args.unbiased_whitening)
    return whiten(values, mask, mean, variance, shift_mean)
