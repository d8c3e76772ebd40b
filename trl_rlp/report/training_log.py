"""The log of a trainer, read from the state that it saved."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_rlp.report.rows import read_object
from trl_rlp.report.shapes import TrainerState
from trl_rlp.storage.run_folder import CHECKPOINTS


STATE = "trainer_state.json"
_STATE_SETTINGS = ("global_step", "max_steps", "num_train_epochs", "train_batch_size", "logging_steps")
_REMEDY = "Delete this checkpoint to read an older one, or save the state again with `trainer.save_state()`."


@dataclass(frozen=True)
class TrainingLog:
    """
    What a trainer logged.

    Args:
        path (`Path`):
            The file.
        entries (`list[dict]`):
            Metrics of each logged step.
        settings (`dict`):
            Steps, epochs and batch size.
    """

    path: Path
    entries: list[dict[str, Any]]
    settings: dict[str, Any]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """
        Collects the values of a metric.

        Args:
            key (`str`):
                Name of the metric.

        Returns:
            `list[tuple[float, float]]`: Steps and values. Values that are not finite are left out.
        """
        points: list[tuple[Any, Any]] = [(entry.get("step"), entry.get(key)) for entry in self.entries]
        return [(step, value) for step, value in points if _is_finite(step) and _is_finite(value)]

    def keys(self) -> set[str]:
        """Returns the names of all metrics."""
        return set().union(*self.entries)

    def last(self, key: str) -> float | None:
        """Returns the last value of a metric, or `None`."""
        return next((value for _, value in reversed(self.curve(key))), None)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


def read_training_log(folder: Path) -> TrainingLog | None:
    """
    Reads the log of the trainer whose `output_dir` or stage is a folder.

    It is in the state that the trainer saved at its end. If the last checkpoint has more steps, that state is from a
    training before, and the log is that of the checkpoint.

    Args:
        folder (`Path`):
            The folder.

    Returns:
        [`TrainingLog`] or `None`: The log. `None` if there is no state.

    Raises:
        ValueError: If the state is damaged.
    """
    paths = [path for parent in (folder, folder / CHECKPOINTS) for path in parent.glob(f"checkpoint-*/{STATE}")]
    paths = [path for path in paths if re.fullmatch(r"checkpoint-\d+", path.parent.name)]
    last = max(paths, key=_read_step, default=None)
    saved = _read_state(folder / STATE) if (folder / STATE).is_file() else None
    if saved is None or last is None:
        return saved if last is None else _read_state(last)
    step = saved.settings.get("global_step")
    return _read_state(last) if isinstance(step, int) and step < _read_step(last) else saved


def _read_step(path: Path) -> int:
    """Reads the step of a checkpoint from the name of its folder."""
    return int(path.parent.name.split("-")[1])


def _read_state(path: Path) -> TrainingLog:
    state = read_object(path, TrainerState, _REMEDY)
    settings = {name: state[name] for name in _STATE_SETTINGS if name in state}
    return TrainingLog(path, state["log_history"], settings)
