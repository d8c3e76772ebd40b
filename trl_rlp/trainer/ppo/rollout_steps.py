"""Converts rollouts to optimizer steps, which TRL's loop counts, in the configuration and the schedule."""

import copy
import math
from typing import Any

from datasets import Dataset, IterableDataset
from torch.optim.lr_scheduler import LRScheduler

from trl_rlp.trainer.ppo.ppo_config import PPOConfig


def rollouts_to_steps(args: PPOConfig, train_dataset: Dataset | IterableDataset | None) -> PPOConfig:
    """
    Converts fields that count rollouts to optimizer steps, and sets the derived sizes.

    Args:
        args ([`PPOConfig`]):
            Configuration of the run. It is not changed.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts.

    Returns:
        [`PPOConfig`]: A copy for TRL's loop, with the sizes that the trainer sets.

    Raises:
        ValueError: If there are too few prompts for a rollout, or the length of the run is unknown.
    """
    if train_dataset is None:
        raise ValueError("`train_dataset` is None. Pass prompts: a column `prompt` (text or messages) or `input_ids`.")
    num_prompts = None if isinstance(train_dataset, IterableDataset) else len(train_dataset)
    scaled = copy.copy(args)
    _set_sizes(scaled)
    _check_length(scaled, num_prompts)
    num_rollouts = scaled.num_total_batches = _count_rollouts(scaled, num_prompts)
    scaled.max_steps = num_rollouts * args.steps_per_rollout
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = vars(args)[name]
        if value is not None:
            rollouts = math.ceil(value * num_rollouts) if value < 1 else int(value)
            setattr(scaled, name, rollouts * args.steps_per_rollout)
    if args.eval_strategy == "steps":
        scaled.eval_delay = args.eval_delay * args.steps_per_rollout
    scaled.model_init_kwargs = None  # the policy is already loaded
    scaled.shuffle_dataset = args.shuffle_dataset and num_prompts is not None  # a stream is shuffled elsewhere
    return scaled


def require_rollout(args: PPOConfig, num_prompts: int, name: str = "train_dataset") -> None:
    """
    Checks that there are enough prompts for one rollout.

    Args:
        args ([`PPOConfig`]):
            Configuration of the run.
        num_prompts (`int`):
            Number of prompts.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            Name of the dataset's argument, for the error message.

    Raises:
        ValueError: If there are too few prompts.
    """
    needed = args.generation_batch_size // args.num_generations
    if num_prompts < needed:
        raise ValueError(
            f"`{name}` has {num_prompts} prompts, but a rollout needs {needed}. Lower `per_device_train_batch_size` "
            "or `gradient_accumulation_steps`, or pass more prompts."
        )


def _set_sizes(args: PPOConfig) -> None:
    args.local_batch_size = args.per_device_train_batch_size * args.steps_per_generation
    args.batch_size = args.local_batch_size * args.world_size
    args.micro_batch_size = args.per_device_train_batch_size * args.world_size
    args.mini_batch_size = args.batch_size // args.num_mini_batches
    args.local_mini_batch_size = args.local_batch_size // args.num_mini_batches


def _check_length(args: PPOConfig, num_prompts: int | None) -> None:
    if num_prompts is None and args.standardize_rewards:
        raise ValueError(
            "`train_dataset` is a stream. `standardize_rewards` cannot sample it in advance. Load it without "
            "streaming, or use `normalize_rewards`."
        )
    if num_prompts is not None:
        require_rollout(args, num_prompts)
    if args.total_episodes is None and args.max_steps <= 0 and num_prompts is None:
        raise ValueError("`train_dataset` is a stream of unknown length. Set `total_episodes`.")


def _count_rollouts(args: PPOConfig, num_prompts: int | None) -> int:
    if args.total_episodes is not None:
        return math.ceil(args.total_episodes / args.batch_size)
    if args.max_steps > 0:
        return args.max_steps
    rollouts = math.ceil(int(args.num_train_epochs * num_prompts * args.num_generations) / args.batch_size)
    return max(1, rollouts) if args.num_train_epochs > 0 else 0  # a part of an epoch is at least one rollout


class RolloutScheduler:
    """
    Learning-rate schedule that changes once per rollout. All steps on a rollout have the same rate.

    Args:
        scheduler (`torch.optim.lr_scheduler.LRScheduler`):
            Schedule over rollouts.
        steps_per_rollout (`int`):
            Number of optimizer steps per rollout.
    """

    def __init__(self, scheduler: LRScheduler, steps_per_rollout: int):
        self.scheduler, self.steps_per_rollout = scheduler, steps_per_rollout
        self.steps = 0

    @property
    def base_lrs(self) -> list[float]:
        """Initial rate of each parameter group."""
        return self.scheduler.base_lrs

    def get_last_lr(self) -> list[float]:
        """Returns the current rate of each parameter group."""
        return self.scheduler.get_last_lr()

    def step(self) -> None:
        """Counts an optimizer step. At the end of a rollout, the rates change."""
        self.steps += 1
        if self.steps % self.steps_per_rollout == 0:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"steps": self.steps, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores the state from a checkpoint.

        Args:
            state (`dict`):
                Result of `state_dict`.
        """
        self.steps = state["steps"]
        self.scheduler.load_state_dict(state["scheduler"])
