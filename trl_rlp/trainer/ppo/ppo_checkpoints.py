"""PPO's part of a checkpoint: its state, the value model and its optimizer, saved between rollouts only."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger
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
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_rlp.losses.kl import next_kl_coef
from trl_rlp.losses.ppo import pooled_mean_and_variance
from trl_rlp.storage.json_files import read_json, write_json
from trl_rlp.storage.processes import run_on_main
from trl_rlp.storage.whole_weights import whole_weights
from trl_rlp.trainer.checkpoints import last_checkpoint, open_checkpoint
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


logger = get_logger(__name__)

STATE_FILE = "ppo_state.json"
VALUE_MODEL = "value_model"
VALUE_ADAPTER = "value_adapter.pt"
VALUE_OPTIMIZER = "value_optimizer.pt"

STOPS = ("should_training_stop", "should_epoch_stop")
"""Requests of a callback to stop, by the name of their field in the trainer's control."""


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
        value_shift (`float`, *optional*, defaults to `0.0`):
            How much the rewards have moved since the start of the run because reward models were refined, in units of
            the score. The critic's values are those of the score minus this number.
    """

    kl_coef: float
    rollouts: int = 0
    score_count: float = 0.0
    score_mean: float = 0.0
    score_squares: float = 0.0
    skipped_steps: int = 0
    bad_in_a_row: int = 0
    steps_per_rollout: int = 0
    value_shift: float = 0.0

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

    def shift_values(self, shift: float) -> None:
        """
        Notes that all scores move from now on. The statistics become those of the same completions under the new
        reward.

        Args:
            shift (`float`):
                Mean new score minus mean old score of the same completions. Their standard deviation stays the same.
        """
        self.value_shift += shift
        self.score_mean += shift

    def shaped_value_shift(self, args: PPOConfig) -> float:
        """
        Returns `value_shift` in units of the shaped score.

        Args:
            args ([`PPOConfig`]):
                Provides `normalize_rewards`.

        Returns:
            `float`: `value_shift`, divided by the standard deviation of all scores so far if scores are normalized.
        """
        if not args.normalize_rewards or self.score_squares == 0:
            return self.value_shift
        return self.value_shift / (self.score_squares / self.score_count) ** 0.5

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
    Delays checkpoints and stops to the end of a rollout, and writes and restores PPO's part of checkpoints.

    A checkpoint within a rollout would lose the rollout. A resumed run would then continue with another one. A stop
    within a rollout would leave a run without the checkpoint that is requested with it.

    It must be the last callback, so that it sees what the others request.

    Args:
        state ([`PPOState`]):
            State of the run.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped for distributed training.
        optimizer (`torch.optim.Optimizer`):
            Optimizer of the critic.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Attributes:
        jit_callback (`JITCheckpointCallback` or `None`): Callback of `enable_jit_checkpoint`, taken from the trainer's
            callbacks. It would write a checkpoint at any step, on each process by itself.
    """

    def __init__(self, state: PPOState, critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator):
        self.state, self.critic, self.optimizer, self.accelerator = state, critic, optimizer, accelerator
        self.jit_callback: JITCheckpointCallback | None = None
        self._pending: set[str] = set()
        self._is_within_step = False

    def on_step_begin(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Notes that a step has begun. The first step of a rollout begins before its completions are sampled."""
        self._is_within_step = True

    def on_substep_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Delays what another callback requests within a rollout."""
        if self._is_within_rollout(args, state):
            self._delay(control)

    # The loop also stops after these events. They are within a rollout if a callback requests a log or an evaluation.
    on_log = on_evaluate = on_save = on_substep_end

    def on_step_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """
        Delays a checkpoint or a stop within a rollout to the end of the rollout. A checkpoint after a skipped step
        waits for the next good step, and a stop waits with it. Requests a log before each checkpoint. At the end of an
        epoch with evaluation, the checkpoint comes after the evaluation.
        """
        self._is_within_step = False
        if not self._is_within_rollout(args, state) and self._is_terminated():
            logger.info(f"SIGTERM was received. The run writes a checkpoint and stops at step {state.global_step}.")
            control.should_save = control.should_training_stop = True
        # The evaluation draws random numbers. A run that resumes from an earlier checkpoint would draw others.
        is_evaluated = args.eval_strategy == IntervalStrategy.EPOCH and float(state.epoch or 0).is_integer()
        self._delay_or_request(args, state, control, must_wait=is_evaluated)

    def on_epoch_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Applies the rules of [`on_step_end`] to a checkpoint that is requested at the end of an epoch."""
        self._delay_or_request(args, state, control)

    def on_train_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Warns of a checkpoint that was not written. Restores the handler of SIGTERM."""
        if "should_save" in self._pending:
            logger.warning(
                f"The run ended at step {state.global_step} without the checkpoint that was requested, because the "
                f"last step was skipped or is not the best. The last one is {last_checkpoint(args.output_dir)}."
            )
        if self.jit_callback is not None:
            self.jit_callback.on_train_end(args, state, control)

    def _is_within_rollout(self, args: PPOConfig, state: TrainerState) -> bool:
        return self._is_within_step or state.global_step % args.steps_per_rollout != 0

    def _is_terminated(self) -> bool:
        """Checks whether any process has received SIGTERM since the last call, if `enable_jit_checkpoint` is set."""
        manager = None if self.jit_callback is None else self.jit_callback.jit_manager
        if manager is None:
            return False
        count = torch.tensor(float(manager.is_checkpoint_requested), device=self.accelerator.device)
        is_terminated = bool(self.accelerator.reduce(count, reduction="sum").item())
        manager.is_checkpoint_requested &= not is_terminated
        return is_terminated

    def _delay(self, control: TrainerControl) -> None:
        for name in ("should_save", *STOPS):
            if vars(control)[name]:
                setattr(control, name, False)
                self._pending.add(name)

    def _delay_or_request(
        self, args: PPOConfig, state: TrainerState, control: TrainerControl, must_wait: bool = False
    ) -> None:
        self._delay(control)
        if self._is_within_rollout(args, state):
            return
        must_wait |= self.state.bad_in_a_row > 0
        is_save_pending = "should_save" in self._pending  # until it is written
        control.should_save = is_save_pending and not must_wait
        if control.should_save or not is_save_pending or state.global_step >= state.max_steps:
            for name in self._pending.intersection(STOPS):
                setattr(control, name, True)
            self._pending.difference_update(STOPS)
        may_save = control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST)
        if may_save and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True  # metrics gathered since the last log are in no checkpoint

    def save(self, args: PPOConfig, state: TrainerState) -> bool:
        """
        Writes PPO's part of a checkpoint, or delays the checkpoint. All processes must call this.

        A checkpoint can still be requested at a wrong step after the other callbacks, as `save_strategy="best"` does.

        Args:
            args ([`PPOConfig`]):
                Configuration of the run.
            state (`TrainerState`):
                State of the trainer, which names the checkpoint.

        Returns:
            `bool`: Whether the part was written. If not, the step is within a rollout or was skipped.
        """
        if self._is_within_rollout(args, state) or self.state.bad_in_a_row:
            self._pending.add("should_save")
            return False
        folder = open_checkpoint(args, state)
        save_critic(folder, self.critic, None if args.save_only_model else self.optimizer, self.accelerator)
        if args.should_save:
            self.state.save(folder)
        self._pending.discard("should_save")
        return True

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
        self._pending, self._is_within_step, self.state.bad_in_a_row = set(), False, 0
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
    model, is_sharded = accelerator.unwrap_model(critic).model, _is_sharded(accelerator)
    is_read = accelerator.is_main_process or not is_sharded  # a whole critic on every process would fill the host
    weights = _read_weights(folder, model) if is_read else {}
    options = StateDictOptions(
        full_state_dict=True, strict=not isinstance(model, PeftModel), broadcast_from_rank0=is_sharded
    )
    set_model_state_dict(critic, weights, options=options)
    del weights
    state = torch.load(path, map_location="cpu", weights_only=True) if is_read else {}
    if not is_sharded:
        optimizer.load_state_dict(state)
    elif run_on_main(lambda: bool(state["state"])):  # that of plain SGD is empty, which torch cannot load
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_optimizer_state_dict(critic, _unwrap_optimizer(optimizer), state, options=options)


def _read_weights(folder: Path, model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """Reads the weights of a value model, or of its adapter, by their names in the critic."""
    if isinstance(model, PeftModel):
        weights = torch.load(folder / VALUE_ADAPTER, map_location="cpu", weights_only=True)
    else:
        with whole_weights():  # in fp32, because "auto" would round a score head that is wider than the other weights
            weights = type(model).from_pretrained(folder / VALUE_MODEL, dtype=torch.float32).state_dict()
    return {f"model.{name}": tensor for name, tensor in weights.items()}


def _optimizer_state(critic: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> dict[str, Any]:
    if not _is_sharded(accelerator):
        return optimizer.state_dict()  # works for every class of optimizer
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(critic, _unwrap_optimizer(optimizer), options=options)


def _is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def _unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
