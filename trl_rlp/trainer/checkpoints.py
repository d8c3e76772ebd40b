"""Checkpoints: which one a run goes on from, and training a stage's model past them to its end."""

from pathlib import Path

from transformers import Trainer, TrainerState

from trl_rlp.storage.artifacts import save_plain


CHECKPOINTS = "checkpoints"
"""Folder of a stage's checkpoints in the stage's own."""


def last_checkpoint(folder: str | Path) -> str | None:
    """
    Gives the newest checkpoint in a folder that was written to its end, which is the trainer's state.

    Args:
        folder (`str` or `Path`):
            `output_dir` of a trainer, which may not exist yet.

    Returns:
        `str`, or `None` if there is none.
    """
    steps = [path.parent.name.rpartition("-")[2] for path in Path(folder).glob("checkpoint-*/trainer_state.json")]
    whole = [int(step) for step in steps if step.isdecimal()]
    return str(Path(folder) / f"checkpoint-{max(whole)}") if whole else None


def resolve_checkpoint(resume_from_checkpoint: str | bool | None, output_dir: str) -> str | None:
    """
    Gives the folder that `train()` goes on from.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            What the trainer was told: a folder, or `True` (or `"True"`) for the last one.
        output_dir (`str`):
            The trainer's folder.

    Returns:
        `str`, or `None` if training starts anew.

    Raises:
        ValueError: if there is no checkpoint to go on from.
    """
    # A command line gives text.
    told = {"true": True, "false": None, "none": None}.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)
    if told is not True:
        return told or None
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(
            f"`resume_from_checkpoint` is True, but '{output_dir}' holds no checkpoint. Leave it out to start anew."
        )
    return checkpoint


def completed_steps(checkpoint: str) -> int:
    """
    Says how far a run had come.

    Args:
        checkpoint (`str`):
            Folder of a checkpoint.

    Returns:
        `int`: optimizer steps.
    """
    return TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step


def train_to_end(trainer: Trainer, folder: Path) -> dict[str, float]:
    """
    Trains a stage's model, from its last checkpoint if there is one, and saves it as a plain one.

    Args:
        trainer (`transformers.Trainer`):
            Its `output_dir` is [`CHECKPOINTS`] in the stage's folder.
        folder (`Path`):
            Where the plain model goes.

    Returns:
        `dict[str, float]`: the last logged value of each metric.
    """
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    save_plain(trainer, folder)
    figures = {}
    for entry in trainer.state.log_history:
        figures |= {key: value for key, value in entry.items() if isinstance(value, (int, float))}
    return figures
