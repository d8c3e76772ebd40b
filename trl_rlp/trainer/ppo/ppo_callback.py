"""What happens around PPO's optimizer steps: the critic's own step, steps left out, checkpoints between rollouts."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_rlp.trainer.checkpoints import last_checkpoint
from trl_rlp.trainer.gradients import average_gradients
from trl_rlp.trainer.ppo.critic import Critic
from trl_rlp.trainer.ppo.critic_files import load_critic, save_critic
from trl_rlp.trainer.ppo.ppo_state import MOST_BAD_STEPS, PPOState
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


logger = get_logger(__name__)


class PPOCallback(TrainerCallback):
    """
    Trains the critic beside the policy, guards both against what is not finite, and saves between rollouts only.

    The critic has an optimizer of its own, of the class and with the settings of the policy's, and follows the
    policy's learning-rate schedule. Its gradients are clipped apart.

    Args:
        critic ([`Critic`]):
            On its device.
        args ([`RLPPPOConfig`]):
            Settings of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
        optimizer_class (`type`), optimizer_kwargs (`dict`):
            What the policy's optimizer is made of.
        decayed (`Collection[str]`):
            The critic's parameters that `weight_decay` is for; the trainer leaves out biases and norms.

    Raises:
        ValueError: if the value model is to warm up alone under DeepSpeed.
    """

    def __init__(
        self,
        critic: Critic,
        args: RLPPPOConfig,
        accelerator: Accelerator,
        optimizer_class: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
        decayed: Collection[str],
    ):
        self.accelerator, self.output_dir = accelerator, args.output_dir
        self.ppo_state = PPOState(kl_coef=args.kl_coef, steps_per_rollout=args.steps_per_rollout)
        self.learning_rate = args.value_learning_rate or args.learning_rate
        trained = {name: parameter for name, parameter in critic.named_parameters() if parameter.requires_grad}
        groups = [
            {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": args.weight_decay},
            {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = optimizer_class(groups, **{**optimizer_kwargs, "lr": self.learning_rate})
        self.critic, self.optimizer = critic, optimizer
        # A DeepSpeed engine holds one model, the policy; the critic is then a whole copy in each process.
        self._is_replicated = accelerator.distributed_type == DistributedType.DEEPSPEED
        if self._is_replicated and args.value_warmup_rollouts:
            raise ValueError(
                "`value_warmup_rollouts` has no effect under DeepSpeed, whose engine steps the policy by itself. "
                "Leave it at 0, or use FSDP."
            )
        if not self._is_replicated:
            self.critic, self.optimizer = accelerator.prepare(self.critic, self.optimizer)
        self._is_finite, self._is_bad_rollout = True, False

    def begin_rollout(self, batch: dict[str, torch.Tensor]) -> bool:
        """
        Counts a rollout; on one that is not finite no step is taken.

        Args:
            batch (`dict[str, torch.Tensor]`):
                `advantages` and `returns`, into which whatever is not finite spreads.

        Returns:
            `bool`: whether all is finite, on all processes.

        Raises:
            RuntimeError: if it is the third bad one in a row.
        """
        self.ppo_state.rollouts += 1
        is_finite = bool(batch["advantages"].isfinite().all() & batch["returns"].isfinite().all())
        self._is_bad_rollout = self._anywhere(not is_finite)
        if self._is_bad_rollout:
            self._count_bad("a rollout's scores, log-probabilities or values")
        return not self._is_bad_rollout

    def see_loss(self, loss: torch.Tensor) -> bool:
        """
        Notes whether the loss of a micro-batch is finite.

        Args:
            loss (`torch.Tensor`):
                A scalar.

        Returns:
            `bool`: whether it is, on this process.
        """
        is_finite = bool(loss.isfinite())
        self._is_finite &= is_finite
        return is_finite

    def _anywhere(self, is_so: bool) -> bool:
        flag = torch.tensor(float(is_so), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())

    def on_pre_optimizer_step(
        self, args: RLPPPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Steps the critic on the gradients since the last step, or takes all gradients away if one is not finite."""
        policy = kwargs["model"]
        if self._is_bad_rollout or not self._is_good_step(policy):
            self.ppo_state.skipped_steps += 1
            _drop_gradients(policy)
            self.optimizer.zero_grad()
            if not self._is_bad_rollout:
                self._count_bad("the loss or its gradient")
        else:
            self.ppo_state.bad_in_a_row = 0
            if self.ppo_state.rollouts <= args.value_warmup_rollouts:
                _drop_gradients(policy)
            self._step_critic(args, kwargs["lr_scheduler"])
        self._is_finite = True

    def _is_good_step(self, policy: nn.Module) -> bool:
        gradients = [p.grad for module in (policy, self.critic) for p in module.parameters() if p.grad is not None]
        # The norm reads the gradients once; asking each element costs several passes over them.
        is_good = self._is_finite and bool(nn.utils.get_total_norm(gradients).isfinite())
        return not self._anywhere(not is_good)

    def _count_bad(self, what: str) -> None:
        self.ppo_state.bad_in_a_row += 1
        logger.warning(
            f"{what[0].upper()}{what[1:]} are not finite (rollout {self.ppo_state.rollouts}): no step is taken."
        )
        if self.ppo_state.bad_in_a_row >= MOST_BAD_STEPS:
            checkpoint = last_checkpoint(self.output_dir)
            raise RuntimeError(
                f"{MOST_BAD_STEPS} times in a row {what} were not finite. Go on from the last good checkpoint "
                f"({checkpoint or 'there is none yet'}) with a lower `learning_rate`, or look at the reward functions."
            )

    def _step_critic(self, args: RLPPPOConfig, lr_scheduler: Any) -> None:
        if self._is_replicated and self.accelerator.num_processes > 1:
            average_gradients(self._trained(), self.accelerator)
        if args.max_grad_norm > 0:
            clip = nn.utils.clip_grad_norm_ if self._is_replicated else self.accelerator.clip_grad_norm_
            clip(self._trained(), args.max_grad_norm)
        share = lr_scheduler.get_last_lr()[0] / lr_scheduler.base_lrs[0] if lr_scheduler.base_lrs[0] else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.critic.parameters() if parameter.requires_grad]

    def on_step_end(self, args: RLPPPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """
        Puts a checkpoint that falls into a rollout off to its end, and one after a step left out to a good one; asks
        for a log before it. At the end of a pass that is evaluated the checkpoint comes after the evaluation.
        """
        # The evaluation draws numbers, and a resumed run would begin behind it.
        is_evaluated = args.eval_strategy == IntervalStrategy.EPOCH and float(state.epoch).is_integer()
        self._prepare_save(args, state, control, must_wait=is_evaluated)

    def on_epoch_end(self, args: RLPPPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The same for a checkpoint that is asked for at the end of a pass over the prompts."""
        self._prepare_save(args, state, control)

    def _prepare_save(
        self, args: RLPPPOConfig, state: TrainerState, control: TrainerControl, must_wait: bool = False
    ) -> None:
        must_wait |= self.must_wait(args, state)
        if must_wait and control.should_save:
            control.should_save, self._is_put_off = False, True
        elif self._is_put_off and not must_wait:
            control.should_save, self._is_put_off = True, False
        may_save = control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST)
        if may_save and args.logging_strategy != IntervalStrategy.NO:
            # What has been gathered since the last log is in no checkpoint, so a log comes before each.
            control.should_log = True

    _is_put_off = False

    def must_wait(self, args: RLPPPOConfig, state: TrainerState) -> bool:
        """
        Says whether this is no place for a checkpoint.

        Args:
            args ([`RLPPPOConfig`]):
                Settings of the run.
            state (`TrainerState`):
                The trainer's.

        Returns:
            `bool`: whether it is within a rollout, or after a step that was left out.
        """
        return bool(state.global_step % args.steps_per_rollout or self.ppo_state.bad_in_a_row)

    @property
    def value_model(self) -> PreTrainedModel | PeftModel:
        """The critic's classifier, not wrapped."""
        return self.accelerator.unwrap_model(self.critic).model

    def save(self, args: RLPPPOConfig, state: TrainerState) -> None:
        """
        Writes value model, its optimizer and PPO's state into the checkpoint that the trainer is about to write.

        Args:
            args ([`RLPPPOConfig`]):
                Settings of the run.
            state (`TrainerState`):
                The trainer's.
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if args.should_save:
            # What says that a checkpoint is whole, which an older run may have left here.
            (folder / "trainer_state.json").unlink(missing_ok=True)
        optimizer = None if args.save_only_model else self.optimizer
        save_critic(folder, self.critic, optimizer, self.accelerator)
        if args.should_save:
            self.ppo_state.save(folder)

    def begin(self, checkpoint: str | Path | None) -> None:
        """
        Begins a run anew, or restores all that [`save`] wrote.

        Args:
            checkpoint (`str` or `Path`, *optional*):
                Folder that the trainer wrote.

        Raises:
            ValueError: if the folder lacks it, or is of a run with other rollouts.
        """
        steps_per_rollout, self._is_put_off = self.ppo_state.steps_per_rollout, False
        self.ppo_state.bad_in_a_row = 0
        if checkpoint is None:
            return
        self.ppo_state = PPOState.load(checkpoint)
        if self.ppo_state.steps_per_rollout != steps_per_rollout:
            raise ValueError(
                f"`resume_from_checkpoint`={str(checkpoint)!r} is of a run with {self.ppo_state.steps_per_rollout} "
                f"optimizer steps a rollout, and now there are {steps_per_rollout}. Set `num_ppo_epochs` and "
                "`num_mini_batches` as they were."
            )
        load_critic(Path(checkpoint), self.critic, self.optimizer, self.accelerator)


def _drop_gradients(module: nn.Module) -> None:
    """Without gradients an optimizer leaves parameters and their momenta as they are; zeros would move both."""
    for parameter in module.parameters():
        parameter.grad = None
