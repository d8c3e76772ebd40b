"""The critic's optimizer, which steps together with the policy's optimizer."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from trl_rlp.trainer.gradients import average_gradients
from trl_rlp.trainer.ppo.finite_guard import FiniteGuard, drop_gradients
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.sharding import prepare_critic
from trl_rlp.trainer.ppo.token_models import Critic


class CriticOptimizer(TrainerCallback):
    """
    Updates the critic just before each optimizer step of the policy. If the guard refuses the step, neither changes.

    The optimizer has the same class and settings as the policy's, and follows the same learning-rate schedule. If the
    policy's learning rate is 0, that of the critic is constant. The critic's gradients are clipped separately.

    Args:
        critic ([`Critic`]):
            The critic. It is moved to the device.
        args ([`PPOConfig`]):
            Configuration of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
        ppo_state ([`PPOState`]):
            Number of rollouts, for the warm-up of the critic.
        guard ([`FiniteGuard`]):
            Decides whether a step is taken.
        optimizer_class (`type`):
            Class of the policy's optimizer.
        optimizer_kwargs (`dict`):
            Keyword arguments of the policy's optimizer.
        decay_parameters (`Collection[str]`):
            Names of the critic's parameters that get weight decay.

    Attributes:
        critic (`nn.Module`): The critic, wrapped for distributed training if there are several processes.
        optimizer (`torch.optim.Optimizer`): The optimizer of the critic.

    Raises:
        ValueError: If `value_warmup_rollouts` is set under DeepSpeed.
    """

    def __init__(
        self,
        critic: Critic,
        args: PPOConfig,
        accelerator: Accelerator,
        ppo_state: PPOState,
        guard: FiniteGuard,
        optimizer_class: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
        decay_parameters: Collection[str],
    ):
        self.accelerator, self.ppo_state, self.guard = accelerator, ppo_state, guard
        self.learning_rate = args.value_learning_rate or args.learning_rate
        trainable = {name: parameter for name, parameter in critic.named_parameters() if parameter.requires_grad}
        groups = [
            {
                "params": [p for name, p in trainable.items() if name in decay_parameters],
                "weight_decay": args.weight_decay,
            },
            {"params": [p for name, p in trainable.items() if name not in decay_parameters], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizer = optimizer_class(groups, **{**optimizer_kwargs, "lr": self.learning_rate})
        # A DeepSpeed engine holds one model, the policy. Each process then has a full copy of the critic.
        self._is_replicated = accelerator.distributed_type == DistributedType.DEEPSPEED
        if self._is_replicated and args.value_warmup_rollouts:
            raise ValueError(
                "`value_warmup_rollouts` has no effect under DeepSpeed, because its engine steps the policy itself. "
                "Set it to 0, or use FSDP."
            )
        self.critic, self.optimizer = prepare_critic(critic, self.optimizer, accelerator)

    @contextmanager
    def accumulate_gradients(self) -> Iterator[None]:
        """
        Exchanges the critic's gradients between processes in the last micro-batch of a step only, as the trainer does
        with the policy's. Forward and backward pass must be inside.
        """
        exchanges_always = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        if self._is_replicated or exchanges_always or self.accelerator.sync_gradients:
            yield
            return
        with self.accelerator.no_sync(self.critic):
            yield

    def on_pre_optimizer_step(
        self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Updates the critic, unless the guard refuses the step. During the warm-up the policy is not updated."""
        policy = kwargs["model"]
        if not self.guard.check_step((policy, self.critic)):
            return
        if self.ppo_state.rollouts <= args.value_warmup_rollouts:
            drop_gradients(policy)
        self._step(args, kwargs["lr_scheduler"])

    def _step(self, args: PPOConfig, lr_scheduler: Any) -> None:
        parameters = [parameter for parameter in self.critic.parameters() if parameter.requires_grad]
        if self._is_replicated and self.accelerator.num_processes > 1:
            average_gradients(parameters, self.accelerator)
        if args.max_grad_norm > 0:
            # Under FSDP, accelerate's function compares the weights of all of its models with `==`, which fails.
            nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        schedule = lr_scheduler
        while not hasattr(schedule, "base_lrs"):  # accelerate's wrappers, of which DeepSpeed has two
            schedule = schedule.scheduler
        factor = lr_scheduler.get_last_lr()[0] / schedule.base_lrs[0] if schedule.base_lrs[0] else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
