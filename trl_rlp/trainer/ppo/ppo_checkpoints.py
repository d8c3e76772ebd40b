"""PPO's part of a checkpoint: its state, the value model and its optimizer, saved between rollouts only."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_rlp.losses.kl import next_kl_coef
from trl_rlp.losses.ppo import pooled_mean_and_variance
from trl_rlp.storage.json_files import read_json, write_json
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


STATE_FILE = "ppo_state.json"
VALUE_MODEL = "value_model"
VALUE_ADAPTER = "value_adapter.pt"
VALUE_OPTIMIZER = "value_optimizer.pt"


@dataclass
class PPOState:
    """
    State that PPO keeps from rollout to rollout in addition to weights. It is equal on all processes.

    Args:
        kl_coef (`float`):
            Current weight of the KL divergence in the reward.
        rollouts (`int`, *optional*, defaults to `0`):
            Number of rollouts that have started.
        score_count, score_mean, score_squares (`float`, *optional*, defaults to `0.0`):
            Number and mean of all scores so far, and the sum of their squared differences from the mean.
        skipped_steps (`int`, *optional*, defaults to `0`):
            Number of optimizer steps skipped because a number was not finite.
        bad_in_a_row (`int`, *optional*, defaults to `0`):
            Number of consecutive skipped steps. A skipped rollout counts once.
        steps_per_rollout (`int`, *optional*, defaults to `0`):
            Number of optimizer steps per rollout.
    """

    kl_coef: float
    rollouts: int = 0
    score_count: float = 0.0
    score_mean: float = 0.0
    score_squares: float = 0.0
    skipped_steps: int = 0
    bad_in_a_row: int = 0
    steps_per_rollout: int = 0

    def adapt_kl_coef(self, kl: float, args: PPOConfig) -> None:
        """
        Adapts `kl_coef` after a rollout, if it is adaptive.

        Args:
            kl (`float`):
                Mean KL divergence per completion of the rollout, in nats.
            args ([`PPOConfig`]):
                Configuration of the run.
        """
        if args.adaptive_kl:
            self.kl_coef = next_kl_coef(self.kl_coef, kl, args.kl_target, args.kl_horizon, args.batch_size)

    def add_scores(self, moments: torch.Tensor) -> float:
        """
        Adds the scores of a rollout to the statistics.

        Args:
            moments (`torch.Tensor` of shape `(processes, 3)`):
                [`masked_moments`] of each process.

        Returns:
            `float`: Standard deviation of all scores so far. It is 1 if they are all equal or there are none.
        """
        if self.score_count + float(moments[:, 0].sum()) == 0:
            return 1.0
        past = torch.tensor([self.score_count, self.score_mean, self.score_squares], dtype=torch.float64)
        moments = torch.cat([past[None], moments.double().cpu()])  # (processes + 1, 3)
        mean, variance = pooled_mean_and_variance(moments, unbiased=False)
        self.score_count = float(moments[:, 0].sum())
        self.score_mean, self.score_squares = float(mean), float(variance) * self.score_count
        return float(variance) ** 0.5 or 1.0

    def save(self, folder: Path) -> None:
        """
        Writes the state into a checkpoint.

        Args:
            folder (`Path`):
                The checkpoint.
        """
        write_json(folder / STATE_FILE, asdict(self))

    def restore(self, folder: str | Path) -> None:
        """
        Restores the state from a checkpoint, in place.

        Args:
            folder (`str` or `Path`):
                The checkpoint.

        Raises:
            ValueError: If the folder has no state, or its run had another number of steps per rollout.
        """
        path = Path(folder) / STATE_FILE
        if not path.is_file():
            raise ValueError(
                f"`resume_from_checkpoint`={str(folder)!r} has no {STATE_FILE}, so it was not written by this "
                "trainer. Pass the folder as `model` to start from its weights instead."
            )
        saved = PPOState(**read_json(path))
        if saved.steps_per_rollout != self.steps_per_rollout:
            raise ValueError(
                f"`resume_from_checkpoint`={str(folder)!r} is from a run with {saved.steps_per_rollout} optimizer "
                f"steps per rollout, but this run has {self.steps_per_rollout}. Set `num_ppo_epochs` and "
                "`num_mini_batches` to their previous values."
            )
        vars(self).update(vars(saved))


class RolloutCheckpoints(TrainerCallback):
    """
    Delays checkpoints to the end of a rollout, and writes and restores PPO's part of them.

    A checkpoint within a rollout would lose the rollout. A resumed run would then continue with another one.

    Args:
        state ([`PPOState`]):
            State of the run.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped for distributed training.
        optimizer (`torch.optim.Optimizer`):
            Optimizer of the critic.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
    """

    def __init__(self, state: PPOState, critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator):
        self.state, self.critic, self.optimizer, self.accelerator = state, critic, optimizer, accelerator
        self._is_delayed = False

    def on_step_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """
        Delays a checkpoint within a rollout to the end of the rollout, and a checkpoint after a skipped step to the
        next good step. Requests a log before each checkpoint. At the end of an epoch with evaluation, the checkpoint
        comes after the evaluation.
        """
        # The evaluation draws random numbers. A run that resumes from an earlier checkpoint would draw others.
        is_evaluated = args.eval_strategy == IntervalStrategy.EPOCH and float(state.epoch or 0).is_integer()
        self._delay_or_request_save(args, state, control, must_wait=is_evaluated)

    def on_epoch_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Applies the rules of [`on_step_end`] to a checkpoint that is requested at the end of an epoch."""
        self._delay_or_request_save(args, state, control)

    def _delay_or_request_save(
        self, args: PPOConfig, state: TrainerState, control: TrainerControl, must_wait: bool = False
    ) -> None:
        must_wait |= self.must_wait(args, state)
        if must_wait and control.should_save:
            control.should_save, self._is_delayed = False, True
        elif self._is_delayed and not must_wait:
            control.should_save, self._is_delayed = True, False
        may_save = control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST)
        if may_save and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True  # metrics gathered since the last log are in no checkpoint

    def must_wait(self, args: PPOConfig, state: TrainerState) -> bool:
        """
        Checks whether a checkpoint must not be written at this step.

        Args:
            args ([`PPOConfig`]):
                Configuration of the run.
            state (`TrainerState`):
                State of the trainer.

        Returns:
            `bool`: Whether the step is within a rollout or was skipped.
        """
        return bool(state.global_step % args.steps_per_rollout or self.state.bad_in_a_row)

    def save(self, args: PPOConfig, state: TrainerState) -> None:
        """
        Writes PPO's part of a checkpoint. All processes must call this.

        Args:
            args ([`PPOConfig`]):
                Configuration of the run.
            state (`TrainerState`):
                State of the trainer, which names the checkpoint.
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if args.should_save:
            # This file marks a checkpoint as complete. An earlier run may have left it in the same folder.
            (folder / "trainer_state.json").unlink(missing_ok=True)
        save_critic(folder, self.critic, None if args.save_only_model else self.optimizer, self.accelerator)
        if args.should_save:
            self.state.save(folder)

    def begin(self, checkpoint: str | Path | None) -> None:
        """
        Starts a run, or restores the state that [`save`] wrote.

        Args:
            checkpoint (`str` or `Path`, *optional*):
                Checkpoint of the trainer.

        Raises:
            ValueError: If the folder is not a checkpoint of this trainer, or its run had another number of steps per
                rollout.
        """
        self._is_delayed, self.state.bad_in_a_row = False, 0
        if checkpoint is not None:
            self.state.restore(checkpoint)
            load_critic(Path(checkpoint), self.critic, self.optimizer, self.accelerator)


def save_critic(
    folder: Path, critic: nn.Module, optimizer: torch.optim.Optimizer | None, accelerator: Accelerator
) -> None:
    """
    Saves the value model, or only its adapter, and its optimizer. All processes must call this, and the main process
    writes.

    Weights that are sharded over processes are saved in full.

    Args:
        folder (`Path`):
            Checkpoint of the trainer.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped for distributed training.
        optimizer (`torch.optim.Optimizer`, *optional*):
            Optimizer of the critic. If `None`, no optimizer is saved.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
    """
    model = accelerator.unwrap_model(critic).model
    is_adapter = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
    weights = get_model_state_dict(critic, options=options)
    state = None if optimizer is None else _optimizer_state(critic, optimizer, accelerator)
    if not accelerator.is_main_process:
        return
    weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if is_adapter:
        # The Trainer would load an adapter folder inside a checkpoint into the policy.
        torch.save(weights, folder / VALUE_ADAPTER)
    else:
        model.save_pretrained(folder / VALUE_MODEL, state_dict=weights)
    if state is not None:
        torch.save(state, folder / VALUE_OPTIMIZER)


def load_critic(folder: Path, critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """
    Loads in place what [`save_critic`] saved.

    Args:
        folder (`Path`):
            Checkpoint of the trainer.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped for distributed training.
        optimizer (`torch.optim.Optimizer`):
            Optimizer of the critic.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Raises:
        ValueError: If the checkpoint has no optimizer.
    """
    path = folder / VALUE_OPTIMIZER
    if not path.is_file():
        raise ValueError(
            f"`resume_from_checkpoint`={str(folder)!r} has no {VALUE_OPTIMIZER}, because it was written with "
            "`save_only_model`. No run can resume from it."
        )
    model = accelerator.unwrap_model(critic).model
    is_adapter = isinstance(model, PeftModel)
    if is_adapter:
        weights = torch.load(folder / VALUE_ADAPTER, map_location="cpu", weights_only=True)
    else:
        weights = type(model).from_pretrained(folder / VALUE_MODEL, dtype="auto").state_dict()
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    set_model_state_dict(critic, weights, options=StateDictOptions(full_state_dict=True, strict=not is_adapter))
    state = torch.load(path, map_location="cpu", weights_only=True)
    if _is_sharded(accelerator):
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(critic, _unwrap_optimizer(optimizer), state, options=options)
    else:
        optimizer.load_state_dict(state)


def _optimizer_state(critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> dict[str, Any]:
    if not _is_sharded(accelerator):
        return optimizer.state_dict()  # works for every class of optimizer
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(critic, _unwrap_optimizer(optimizer), options=options)


def _is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def _unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
