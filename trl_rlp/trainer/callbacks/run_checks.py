"""Checks of a policy's run that every callback with a `RefinableReward` needs."""

import math

from transformers import TrainingArguments

from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


def require_modes(args: TrainingArguments) -> None:
    """
    Checks that the policy is in training mode in training only, because only what is scored then is recorded.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Configuration of the policy's run.

    Raises:
        ValueError: If completions of an evaluation would be recorded as a rollout.
    """
    # Continuous batching of TRL leaves the policy in training mode. `PPOTrainer` restores the mode.
    is_lost = getattr(args, "use_transformers_continuous_batching", False) and not isinstance(args, PPOConfig)
    if is_lost and args.eval_strategy != "no":
        raise ValueError(
            "`use_transformers_continuous_batching` leaves the policy in training mode in an evaluation, so the "
            "completions of the evaluation would count as a rollout. Set it to False, or `eval_strategy` to 'no'."
        )


def require_scores(reward: RefinableReward, num_before: int, num_steps: int, args: TrainingArguments) -> None:
    """
    Checks that the trainer uses a reward. A second call of `train()` may begin in the middle of a rollout of TRL.

    Args:
        reward ([`RefinableReward`]):
            The reward function.
        num_before (`int`):
            Its number of rollouts at the start of the call of `train()`.
        num_steps (`int`):
            Number of optimizer steps of this call.
        args ([`~transformers.TrainingArguments`]):
            Configuration of the policy's run.

    Raises:
        ValueError: If `reward` has scored nothing in as many steps as a rollout lasts.
    """
    if reward.num_rollouts == num_before and num_steps >= _count_steps(args):
        raise ValueError(
            "`reward` scored nothing in the first rollout of the run. Pass the same `RefinableReward` to the trainer "
            "in `reward_funcs`."
        )


def _count_steps(args: TrainingArguments) -> int:
    """Counts the optimizer steps of a rollout."""
    if isinstance(args, PPOConfig):
        return args.steps_per_rollout
    num_batches = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)
    return math.ceil(num_batches / args.gradient_accumulation_steps)
