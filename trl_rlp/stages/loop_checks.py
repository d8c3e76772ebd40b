"""Checks of what is added to step 5 of Algorithm 1: rounds, the anchor reward, and refinements during the training."""

import math

from datasets import Dataset
from transformers.utils import logging
from trl import GRPOConfig, RLOOConfig

from trl_rlp.storage.processes import process_state
from trl_rlp.trainer.callbacks.refinement_checks import find_unsupported_sharding
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.rollout_steps import rollouts_to_steps
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


logger = logging.get_logger(__name__)


def require_loop_settings(anchor_weight: float, refine_every: int | None, rounds: int, prefix: str = "") -> None:
    """
    Checks the ranges of the settings.

    Args:
        anchor_weight (`float`):
            Weight of the anchor reward.
        refine_every (`int`, *optional*):
            Number of rollouts between refinements.
        rounds (`int`):
            Number of times that steps 4 and 5 run.
        prefix (`str`, *optional*, defaults to `""`):
            What comes before their names in an error message.

    Raises:
        ValueError: If one is out of range.
    """
    if not 0 <= anchor_weight < math.inf:
        raise ValueError(
            f"`{prefix}anchor_weight` must be at least 0, got {anchor_weight}. 0 turns the anchor reward off."
        )
    if refine_every is not None and refine_every < 1:
        raise ValueError(
            f"`{prefix}refine_every` must be at least 1, got {refine_every}. None turns the refinement off."
        )
    if rounds < 1:
        raise ValueError(f"`{prefix}rounds` must be at least 1, got {rounds}. Algorithm 1 has 1.")


def require_refinable(
    policy_config: PPOConfig | RLOOConfig | GRPOConfig,
    reward_config: RLPRewardConfig,
    policy: str = "policy_args.",
    reward: str = "reward_args.",
    field: str = "refine_every",
) -> None:
    """
    Checks that a reward model can be refined while the policy trains.

    Args:
        policy_config ([`PPOConfig`] or [`~trl.RLOOConfig`] or [`~trl.GRPOConfig`]):
            Configuration of the policy's trainer.
        reward_config ([`RLPRewardConfig`]):
            Configuration of the refinement.
        policy (`str`, *optional*, defaults to `"policy_args."`):
            What comes before the names of the policy trainer's fields in an error message.
        reward (`str`, *optional*, defaults to `"reward_args."`):
            What comes before the names of the reward trainer's fields in an error message.
        field (`str`, *optional*, defaults to `"refine_every"`):
            Name of the field that asks for the refinement.

    Raises:
        ValueError: If device or precision differ, views need two completions of a prompt in a rollout, or a setting
            does not work in the loop.
    """
    for name in ("use_cpu", "bf16", "fp16"):
        values = vars(policy_config)[name], vars(reward_config)[name]
        if values[0] != values[1]:
            raise ValueError(
                f"`{policy}{name}` is {values[0]} and `{reward}{name}` is {values[1]}, but with `{field}` both models "
                "train in one process on one device in one precision. Set the same value."
            )
    if reward_config.uses_views and policy_config.num_generations < 2:
        raise ValueError(
            f"`{policy}num_generations` is {policy_config.num_generations}, but with `{field}` and the method "
            f"{reward_config.method!r} the views are two completions of a prompt in step 5. Set it to at least 2."
        )
    if reward_config.uses_synthetic_pairs and reward_config.redraw_rejected:
        raise ValueError(
            f"`{reward}redraw_rejected` is True, but with `{field}` the pairs of step 5 keep one rejected completion. "
            "Set it to False."
        )
    if policy_config.restore_callback_states_from_checkpoint:
        raise ValueError(
            f"`{policy}restore_callback_states_from_checkpoint` is True, but with `{field}` the refinement restores "
            "itself. Set it to False."
        )
    sharding = find_unsupported_sharding(policy_config)
    if sharding is not None:
        raise ValueError(
            f"`{field}` is set under {sharding}, where no reward model can be trained in the loop of the policy. "
            f"Launch the run with DDP or FSDP2, or leave out `{field}`."
        )


def warn_of_long_schedule(
    refine_every: int,
    policy_config: PPOConfig | RLOOConfig | GRPOConfig,
    prompt_dataset: Dataset,
    field: str = "refine_every",
) -> None:
    """
    Warns if step 5 is too short for a refinement.

    Args:
        refine_every (`int`):
            Number of rollouts between refinements.
        policy_config ([`PPOConfig`] or [`~trl.RLOOConfig`] or [`~trl.GRPOConfig`]):
            Configuration of the policy's trainer.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U.
        field (`str`, *optional*, defaults to `"refine_every"`):
            Name of the field that asks for the refinement.
    """
    num_rollouts = count_rollouts(policy_config, prompt_dataset)
    if num_rollouts <= refine_every and process_state().is_main_process:
        logger.warning(
            f"`{field}` is {refine_every}, but step 5 has {num_rollouts} rollouts and no refinement after the last "
            f"one, so it will have 0 refinements. Lower `{field}`, or train longer."
        )


def count_rollouts(config: PPOConfig | RLOOConfig | GRPOConfig, prompt_dataset: Dataset) -> int:
    """
    Counts the rollouts of a policy's training.

    Args:
        config ([`PPOConfig`] or [`~trl.RLOOConfig`] or [`~trl.GRPOConfig`]):
            Configuration of the policy's trainer.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U.

    Returns:
        `int`: Number of rollouts.
    """
    if isinstance(config, PPOConfig):
        return rollouts_to_steps(config, prompt_dataset).max_steps // config.steps_per_rollout
    if config.max_steps > 0:
        micro_batches = config.max_steps * config.gradient_accumulation_steps
        return math.ceil(micro_batches / (config.steps_per_generation * config.num_iterations))
    prompts_per_rollout = config.generation_batch_size // config.num_generations
    return math.ceil(config.num_train_epochs * (len(prompt_dataset) // prompts_per_rollout))
