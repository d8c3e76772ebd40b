"""From scores and log-probabilities to what PPO learns from: shaped rewards, advantages, returns."""

import torch
from accelerate import Accelerator

from trl_rlp.losses.kl import after_last_token, kl_estimate, last_token, token_rewards
from trl_rlp.losses.ppo import generalized_advantages, masked_moments, pooled_mean_and_variance, whiten
from trl_rlp.trainer.ppo.ppo_models import PPOModels, Tokens
from trl_rlp.trainer.ppo.ppo_state import PPOState
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.trainer.ppo.rollout_log import critic_terms, objective_terms


GENERATED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "importance_sampling_ratio")
"""What GRPO's rollouts hold that PPO needs."""


def experience_of(
    generated: dict[str, torch.Tensor],
    scores: torch.Tensor,
    stop_token_ids: list[int],
    models: PPOModels,
    state: PPOState,
    pad_token_id: int,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    Gives what PPO learns from a rollout.

    Args:
        generated (`dict[str, torch.Tensor]`):
            Prompts and completions, see [`GENERATED`].
        scores (`torch.Tensor` of shape `(batch,)`):
            What the reward functions gave, weighted and summed.
        stop_token_ids (`list[int]`):
            Tokens that finish a completion.
        models ([`PPOModels`]):
            Policy, reference and critic.
        state ([`PPOState`]):
            Its statistics take the scores in.
        pad_token_id (`int`):
            The policy's pad token, at which the former trainer took a completion to end.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]`: tensors for
        [`Rollout`], and the terms of [`ROLLOUT_TERMS`].
    """
    batch = {name: generated[name] for name in GENERATED if name in generated}
    mask = batch["completion_mask"] = batch["completion_mask"].bool()
    finished = is_finished(batch, stop_token_ids)
    if models.args.score_position == "after_last_token":
        mask = batch["completion_mask"] = mask & before_padding(batch["completion_ids"], pad_token_id)
    batch |= models.judge(Tokens.of(batch))
    scores = shaped_scores(scores, finished, models.args, state, models.accelerator)
    judged = [batch[name] for name in ("old_log_probs", "ref_log_probs", "old_values")]
    batch |= advantages_of(scores, *judged, mask, models.args, state.kl_coef, models.accelerator)
    return batch, objective_terms(batch, scores, finished) | critic_terms(batch)


def before_padding(completion_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """
    Says which tokens the former trainer counted: those before the first pad token, even where the policy drew it.

    Where pad is EOS that leaves EOS out.

    Args:
        completion_ids (`torch.Tensor` of shape `(batch, length)`):
            Token ids.
        pad_token_id (`int`):
            The pad token.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: boolean.
    """
    return (completion_ids == pad_token_id).cumsum(dim=1) == 0


def is_finished(batch: dict[str, torch.Tensor], stop_token_ids: list[int]) -> torch.Tensor:
    """
    Says which completions hold a stop token.

    Args:
        batch (`dict[str, torch.Tensor]`):
            `completion_ids` and `completion_mask`.
        stop_token_ids (`list[int]`):
            Tokens that finish a completion.

    Returns:
        `torch.Tensor` of shape `(batch,)`: boolean.
    """
    ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
    return (torch.isin(ids, torch.tensor(stop_token_ids, device=ids.device)) & mask).any(dim=1)


def shaped_scores(
    scores: torch.Tensor, finished: torch.Tensor, args: RLPPPOConfig, state: PPOState, accelerator: Accelerator
) -> torch.Tensor:
    """
    Gives the scores as they enter the rewards: divided by their running deviation, clipped, less the penalty.

    Args:
        scores (`torch.Tensor` of shape `(batch,)`):
            What the reward functions gave, weighted and summed.
        finished (`torch.Tensor` of shape `(batch,)`):
            Boolean: whether the completion ended in a stop token.
        args ([`RLPPPOConfig`]):
            `normalize_rewards`, `reward_clip` and `missing_eos_penalty` are read.
        state ([`PPOState`]):
            Its statistics take the scores in.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    if args.normalize_rewards:
        # One score that is not finite costs a rollout, not the statistics of the run.
        moments = masked_moments(scores[:, None], scores.isfinite()[:, None])
        scores = scores / state.add_scores(accelerator.gather(moments[None]))
    if args.reward_clip is not None:
        clipped = scores.clamp(-args.reward_clip, args.reward_clip)
        scores = clipped.where(scores.isfinite(), torch.nan)  # or an overflow would be the best score of all
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * ~finished
    return scores


def advantages_of(
    scores: torch.Tensor,
    log_probs: torch.Tensor,
    ref_log_probs: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    args: RLPPPOConfig,
    kl_coef: float,
    accelerator: Accelerator,
) -> dict[str, torch.Tensor]:
    """
    Gives what the losses need of a rollout. Means and deviations are those of all processes.

    Args:
        scores (`torch.Tensor` of shape `(batch,)`):
            From [`shaped_scores`].
        log_probs (`torch.Tensor` of shape `(batch, length)`):
            Of the policy that drew the tokens.
        ref_log_probs (`torch.Tensor` of shape `(batch, length)`):
            Of the reference policy.
        values (`torch.Tensor` of shape `(batch, length)`):
            Of the critic.
        mask (`torch.Tensor` of shape `(batch, length)`):
            Boolean, `True` at the completions' tokens; right-padded.
        args ([`RLPPPOConfig`]):
            Settings of the run.
        kl_coef (`float`):
            Weight of the KL divergence in this rollout.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Returns:
        `dict[str, torch.Tensor]` of shape `(batch, length)` each: `advantages` (whitened), `returns`, `value_mask`,
        and for the log `kl` (nats) and `penalties` (its part of the rewards), 0 outside `mask`.
    """
    kl = kl_estimate(log_probs, ref_log_probs, args.kl_estimator).masked_fill(~mask, 0)
    if args.score_position == "after_last_token":
        positions, value_mask = after_last_token(mask)
    else:
        positions, value_mask = last_token(mask), mask
    rewards = token_rewards(scores, kl, mask, kl_coef, positions)
    if args.whiten_rewards:
        rewards = _whitened(rewards, value_mask, args, accelerator, shift_mean=False)
    advantages, returns = generalized_advantages(rewards, values, value_mask, args.gamma, args.lam)
    return {
        "advantages": _whitened(advantages, mask, args, accelerator),
        "returns": returns,
        "value_mask": value_mask,
        "kl": kl,
        "penalties": -kl_coef * kl,
    }


def _whitened(
    values: torch.Tensor, mask: torch.Tensor, args: RLPPPOConfig, accelerator: Accelerator, shift_mean: bool = True
) -> torch.Tensor:
    moments = accelerator.gather(masked_moments(values, mask)[None])  # (processes, 3)
    if moments[:, 0].sum() < 2:
        # Evaluation may end with a batch of one completion of one token, which has no deviation to divide by.
        return values.masked_fill(~mask, 0) * (not shift_mean)
    mean, variance = pooled_mean_and_variance(moments, unbiased=args.unbiased_whitening)
    return whiten(values, mask, mean, variance, shift_mean)
