"""Checkpoints: which one a run goes on from, and training a stage's model past them to its end."""

from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from trl_rlp.trainer.artifacts import save_plain


CHECKPOINTS = "checkpoints"
"""Folder of a stage's checkpoints in the stage's own."""


def last_checkpoint(folder: str | Path) -> str | None:
    """
    Gives the newest checkpoint in a folder.

    Args:
        folder (`str` or `Path`):
            `output_dir` of a trainer, which may not exist yet.

    Returns:
        `str`, or `None` if there is none.
    """
    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None


def checkpoint_to_resume(resume_from_checkpoint: str | bool | None, output_dir: str) -> str | None:
    """
    Gives the folder that `train()` goes on from.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            What the trainer was told: a folder, or `True` for the last one.
        output_dir (`str`):
            The trainer's folder.

    Returns:
        `str`, or `None` if training starts anew, or there is no checkpoint, which is for the trainer to complain of.
    """
    if resume_from_checkpoint is True:
        return last_checkpoint(output_dir)
    return resume_from_checkpoint or None


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
