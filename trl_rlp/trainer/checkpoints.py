"""Checkpoints: finds the one to resume from, and trains a stage's model to the end."""

from pathlib import Path

from transformers import Trainer, TrainerState

from trl_rlp.storage.artifacts import save_trained_model


def last_checkpoint(folder: str | Path) -> str | None:
    """
    Returns the newest complete checkpoint in a folder.

    A checkpoint is complete when it has a trainer state, because the trainer writes the state last.

    Args:
        folder (`str` or `Path`):
            `output_dir` of a trainer. It does not have to exist.

    Returns:
        `str` or `None`: Path of the checkpoint. `None` if there is no complete checkpoint.
    """
    names = [path.parent.name.rpartition("-")[2] for path in Path(folder).glob("checkpoint-*/trainer_state.json")]
    steps = [int(name) for name in names if name.isdecimal()]
    return str(Path(folder) / f"checkpoint-{max(steps)}") if steps else None


def resolve_checkpoint(resume_from_checkpoint: str | bool | None, output_dir: str) -> str | None:
    """
    Returns the checkpoint that `train()` resumes from.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            Argument of `train()`: a folder, or `True` (or `"True"`) for the last checkpoint in `output_dir`.
        output_dir (`str`):
            Output folder of the trainer.

    Returns:
        `str` or `None`: Path of the checkpoint. `None` if training starts from the beginning.

    Raises:
        ValueError: If there is no checkpoint to resume from.
    """
    # A command line passes booleans as text.
    booleans = {"true": True, "false": None, "none": None}
    requested = booleans.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)
    if requested is not True:
        return requested or None
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(
            f"`resume_from_checkpoint` is True, but '{output_dir}' contains no checkpoint. Remove it to start from "
            "the beginning."
        )
    return checkpoint


def completed_steps(checkpoint: str) -> int:
    """
    Returns the number of optimizer steps that a run had completed when it wrote a checkpoint.

    Args:
        checkpoint (`str`):
            Folder of the checkpoint.

    Returns:
        `int`: Optimizer steps.
    """
    return TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step


def train_to_end(trainer: Trainer, folder: Path) -> dict[str, float]:
    """
    Trains a stage's model to the end and saves it as a plain model.

    Training resumes from the last checkpoint if there is one.

    Args:
        trainer (`transformers.Trainer`):
            Trainer whose `output_dir` is the folder [`CHECKPOINTS`] inside the stage's folder.
        folder (`Path`):
            Folder that the plain model is saved to.

    Returns:
        `dict[str, float]`: The last logged value of each metric.
    """
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    save_trained_model(trainer, folder)
    metrics = {}
    for entry in trainer.state.log_history:
        metrics |= {key: value for key, value in entry.items() if isinstance(value, (int, float))}
    return metrics
