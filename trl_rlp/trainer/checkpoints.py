"""Checkpoints: finds the one to resume from, and trains a stage's model to the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState, TrainingArguments
from transformers.utils import logging

from trl_rlp.storage.artifacts import save_trained_model
from trl_rlp.storage.json_files import read_json
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import process_state, share_work
from trl_rlp.trainer.model_card import save_model_card
from trl_rlp.trainer.saved_args import redact_saved_args
from trl_rlp.trainer.tracking import stage_run


logger = logging.get_logger(__name__)

TRAINER_STATE = "trainer_state.json"
"""Name of the file that marks a checkpoint as complete. The trainer writes it last."""

INCOMPLETE = "checkpoint-is-incomplete.txt"
"""Name of a file that transformers keeps in a checkpoint while `enable_jit_checkpoint` writes it."""


def last_checkpoint(folder: str | Path) -> str | None:
    """
    Returns the newest complete checkpoint in a folder. A warning names a newer one that is incomplete.

    A checkpoint is complete when a run can resume from it with the same results. The trainer writes its state last, so
    a checkpoint without a readable state is incomplete. A checkpoint that was written with `save_only_model` lacks the
    optimizer and the states of the random number generators.

    Args:
        folder (`str` or `Path`):
            `output_dir` of a trainer. It does not have to exist.

    Returns:
        `str` or `None`: Path of the checkpoint. `None` if there is no complete checkpoint.
    """
    paths = {path.name.removeprefix("checkpoint-"): path for path in Path(folder).glob("checkpoint-*")}
    paths = {int(step): path for step, path in paths.items() if step.isdecimal()}
    complete, warning = None, ""
    for path in (paths[step] for step in sorted(paths, reverse=True)):
        reason = _reason_of_incompleteness(path)
        if reason is None:
            complete = str(path)
            break
        warning = warning or f"The checkpoint '{path}' is incomplete: it {reason}."
    if warning and process_state().is_main_process:
        logger.warning(f"{warning} The last complete checkpoint is {complete or 'none'}.")
    return complete


def _reason_of_incompleteness(checkpoint: Path) -> str | None:
    state, incomplete = checkpoint / TRAINER_STATE, checkpoint / INCOMPLETE
    try:
        read_json(state)
    except FileNotFoundError:
        return f"has no {TRAINER_STATE}"
    except ValueError:
        return f"has a {TRAINER_STATE} that cannot be read"
    if not any(checkpoint.glob("rng_state*.pth")):
        return "was written with `save_only_model`"
    # The file stays behind if the run is killed. A later run may then have completed the checkpoint.
    if incomplete.exists() and incomplete.stat().st_mtime_ns > state.stat().st_mtime_ns:
        return "was being replaced when the run ended"
    return None


def open_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """
    Creates the folder of the checkpoint of this step. All processes may call this.

    An earlier run may have left a checkpoint in the same folder. It becomes incomplete until the trainer has replaced
    all of its files.

    Args:
        args (`TrainingArguments`):
            Configuration of the run.
        state (`TrainerState`):
            State of the trainer, which names the checkpoint.

    Returns:
        `Path`: The folder.
    """
    folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    folder.mkdir(parents=True, exist_ok=True)
    if args.should_save:
        (folder / TRAINER_STATE).unlink(missing_ok=True)
    return folder


def resolve_checkpoint(resume_from_checkpoint: str | Path | bool | None, output_dir: str) -> str | None:
    """
    Returns the checkpoint that `train()` resumes from. All processes must call this.

    Args:
        resume_from_checkpoint (`str` or `Path` or `bool`, *optional*):
            Argument of `train()`: a folder, or `True` (or `"True"`) for the last checkpoint in `output_dir`.
        output_dir (`str`):
            Output folder of the trainer.

    Returns:
        `str` or `None`: Path of the checkpoint. `None` if training starts from the beginning.

    Raises:
        ValueError: If there is no complete checkpoint to resume from, the folder is not one, or the processes find
            different checkpoints.
    """
    return _find_on_all_processes(lambda: _resolve(resume_from_checkpoint, output_dir), output_dir)


def _find_on_all_processes(find: Callable[[], str | None], folder: str | Path) -> str | None:
    """Requires the same checkpoint on all processes. Otherwise they would wait for each other forever."""
    found = share_work(range(process_state().num_processes), lambda own: [find() for _ in own])
    if len(set(found)) > 1:
        raise ValueError(
            f"The processes see different checkpoints in '{folder}': {found}. Use an `output_dir` that all machines "
            "share."
        )
    return found[0]


def _resolve(resume_from_checkpoint: str | Path | bool | None, output_dir: str) -> str | None:
    # A command line passes booleans as text.
    booleans = {"true": True, "false": None, "none": None}
    requested = booleans.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)
    if requested is not True:
        requested = expand_path(requested) if requested else None
        if requested:
            load_state(requested)
        return requested
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(
            f"`resume_from_checkpoint` is True, but '{output_dir}' contains no complete checkpoint. Remove it to "
            "start from the beginning."
        )
    return checkpoint


def load_state(checkpoint: str | Path) -> TrainerState:
    """
    Loads the state of the trainer that wrote a checkpoint.

    Args:
        checkpoint (`str` or `Path`):
            Folder of the checkpoint.

    Returns:
        `TrainerState`: The state, with the number of optimizer steps and the log.

    Raises:
        ValueError: If the checkpoint has no readable state.
    """
    try:
        return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`resume_from_checkpoint`={str(checkpoint)!r} has no readable {TRAINER_STATE}, so it is not a complete "
            "checkpoint. Pass another folder, or True for the last complete checkpoint."
        ) from error


@contextmanager
def no_extra_step(trainer: Trainer, checkpoint: str | None) -> Iterator[None]:
    """
    Makes `train()` take no step if it resumes from a checkpoint of the last step.

    Without it, the loop of transformers takes one more step if the last step is not the last step of an epoch.

    Args:
        trainer (`transformers.Trainer`):
            The trainer. Its method `set_initial_training_values` is replaced inside the `with` block.
        checkpoint (`str`, *optional*):
            Checkpoint that `train()` resumes from.

    Raises:
        ValueError: If the checkpoint has no readable state.
    """
    if checkpoint is None:
        yield
        return
    num_steps, plan = load_state(checkpoint).global_step, trainer.set_initial_training_values

    def plan_epochs(*arguments: Any) -> tuple:
        num_epochs, steps_per_epoch, *others, max_steps = plan(*arguments)
        if num_steps >= max_steps:
            num_epochs = num_steps // steps_per_epoch  # the loop starts with the epoch of this number
        return num_epochs, steps_per_epoch, *others, max_steps

    trainer.set_initial_training_values = plan_epochs
    try:
        yield
    finally:
        trainer.set_initial_training_values = plan


def train_to_end(trainer: Trainer, folder: Path, tags: Sequence[str] = ()) -> dict[str, float]:
    """
    Trains a stage's model to the end and saves it as a plain model with its model card and the state of the trainer.

    Training resumes from the last checkpoint if there is one. A checkpoint of the last step is only loaded.

    Args:
        trainer (`transformers.Trainer`):
            Trainer whose `output_dir` is the folder [`CHECKPOINTS`] inside the stage's folder.
        folder (`Path`):
            Folder that the plain model is saved to.
        tags (`Sequence[str]`, *optional*):
            Further tags of the model card.

    Returns:
        `dict[str, float]`: The last logged value of each metric.

    Raises:
        RuntimeError: If `enable_jit_checkpoint` stopped training before the last step.
    """
    output_dir = trainer.args.output_dir
    checkpoint = _find_on_all_processes(lambda: last_checkpoint(output_dir), output_dir)
    resumed = None if checkpoint is None else load_state(checkpoint)
    with no_extra_step(trainer, checkpoint), stage_run(trainer, folder.name.removesuffix(".partial")):
        trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    if state.global_step < state.max_steps:
        _require_finished(trainer)
    save_trained_model(trainer, folder)
    for saved in (folder, *Path(output_dir).glob("checkpoint-*")):
        redact_saved_args(saved, trainer.args)  # our trainers have done so, TRL's have not
    save_model_card(trainer, folder, tags)
    # `train()` logs a summary at the end. It is about no step if the last step was taken before.
    is_loaded_only = resumed is not None and resumed.global_step >= state.max_steps
    state = resumed if is_loaded_only else state
    if trainer.is_world_process_zero():
        state.save_to_json(str(folder / TRAINER_STATE))
    metrics = {}
    for entry in state.log_history:
        metrics |= {key: value for key, value in entry.items() if isinstance(value, (int, float))}
    return metrics


def _require_finished(trainer: Trainer) -> None:
    """Decides whether a stage whose training was stopped is finished: not after SIGTERM, but after a callback."""
    stop = f"Training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}"
    if trainer.args.enable_jit_checkpoint:
        raise RuntimeError(
            f"{stop}, and `enable_jit_checkpoint` is set, so the stage is not finished. Start the run again to resume "
            f"from the last checkpoint in '{trainer.args.output_dir}'."
        )
    if trainer.is_world_process_zero():
        logger.warning(
            f"{stop}. The stage is finished with this model. To train to the end, remove the callback that stops it."
        )
