"""Experiment trackers: tables in Weights & Biases and Trackio, and a run of its own for each stage."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import ModuleType
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TrackioCallback, is_trackio_available, is_wandb_available

from trl_rlp.data.turns import message_text


MAX_ROWS = 100
"""Largest number of rows of a table."""

PREFERENCES = "synthetic_preferences"
"""Name of the table of synthetic preferences."""

HIDDEN_COLUMNS = ("chosen_ids", "rejected_ids", "candidates", "candidate_ids")
"""Columns of preferences that are not shown."""


def log_table(name: str, rows: Iterable[Mapping[str, Any]], args: TrainingArguments, state: TrainerState) -> None:
    """
    Logs the first rows of a table to the trackers of a training that show tables, if their run has started.

    Args:
        name (`str`):
            Name of the table.
        rows (`Iterable[Mapping]`):
            Rows, each with its cells by column name. At most [`MAX_ROWS`] are logged. Messages become text.
        args (`TrainingArguments`):
            Configuration of the training. `report_to` names the trackers.
        state (`TrainerState`):
            State of the trainer. The column `step` has its number of optimizer steps. Only the main process logs.
    """
    trackers = _find_active_trackers(args.report_to) if state.is_world_process_zero else []
    if not trackers:
        return
    shown = [
        {"step": state.global_step, **{column: _format_cell(cell) for column, cell in row.items()}}
        for row in islice(rows, MAX_ROWS)
    ]
    for tracker in trackers:
        tracker.log({name: tracker.Table(dataframe=pd.DataFrame(shown))})


def log_preferences(
    pairs: Dataset, processing_class: PreTrainedTokenizerBase, args: TrainingArguments, state: TrainerState
) -> None:
    """
    Logs the first synthetic preferences of a dataset as a table.

    Args:
        pairs ([`~datasets.Dataset`]):
            Preferences as text or messages with any audit columns, or token ids only, which are decoded.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the token ids.
        args (`TrainingArguments`):
            Configuration of the training.
        state (`TrainerState`):
            State of the trainer.
    """
    rows: Iterable[dict[str, Any]] = pairs.remove_columns(
        [name for name in HIDDEN_COLUMNS if name in pairs.column_names]
    )
    if not {"chosen", "rejected"} <= set(pairs.column_names):
        sides = {"chosen": "chosen_ids", "rejected": "rejected_ids"}
        rows = ({side: processing_class.decode(row[ids]) for side, ids in sides.items()} for row in pairs)
    log_table(PREFERENCES, rows, args, state)


class PreferenceTableCallback(TrainerCallback):
    """
    Logs synthetic preferences as a table when training begins.

    Args:
        pairs ([`~datasets.Dataset`]):
            Synthetic preferences, as in [`log_preferences`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the token ids.
    """

    def __init__(self, pairs: Dataset, processing_class: PreTrainedTokenizerBase):
        self.pairs, self.processing_class = pairs, processing_class

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the table. The callbacks of the trackers come earlier, so their run has started."""
        log_preferences(self.pairs, self.processing_class, args, state)


def start_trackio_run(trainer: Trainer) -> None:
    """
    Starts Trackio's run if none is active.

    transformers finishes the run at the end of `train()`. TRL logs the time of each generation to it, so a generation
    after or before training would fail. The run is the one of the training if `args.run_name` is set.

    Args:
        trainer (`transformers.Trainer`):
            The trainer. Nothing happens without `report_to="trackio"`.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TrackioCallback) and not _has_trackio_run():
            callback.setup(trainer.args, trainer.state, trainer.model)


@contextmanager
def stage_run(trainer: Trainer, stage: str) -> Iterator[None]:
    """
    Separates the training of a stage from those of other stages in the same program.

    transformers keeps a run of Weights & Biases open after training, and the next trainer would log to it. A run with
    the same `run_name` would be continued in Trackio. If the training fails, its run in Weights & Biases ends as
    failed.

    Args:
        trainer (`transformers.Trainer`):
            Trainer of the stage. Inside the `with` block, its `args.run_name`, if it is set, ends with the name of the
            stage.
        stage (`str`):
            Name of the stage.
    """
    args, name, own_wandb = trainer.args, trainer.args.run_name, None
    if name is not None:
        args.run_name = f"{name}-{stage}"
    if "wandb" in args.report_to and is_wandb_available():
        import wandb

        own_wandb = wandb if wandb.run is None else None  # an active run is the user's
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        args.run_name = name
        if own_wandb is not None:
            own_wandb.finish(exit_code)


def _find_active_trackers(report_to: list[str]) -> list[ModuleType]:
    trackers: list[ModuleType] = []
    if "wandb" in report_to and is_wandb_available():
        import wandb

        if wandb.run is not None:
            trackers.append(wandb)
    if "trackio" in report_to and is_trackio_available() and _has_trackio_run():
        import trackio

        trackers.append(trackio)
    return trackers


def _has_trackio_run() -> bool:
    from trackio import context_vars  # transformers and TRL read the same module

    return context_vars.current_run.get() is not None


def _format_cell(cell: Any) -> str | float | None:
    if cell is None or isinstance(cell, str | int | float):
        return cell
    if isinstance(cell, list) and cell and all(isinstance(message, dict) for message in cell):
        return "\n".join(f"{message.get('role')}: {message_text(message)}" for message in cell)
    return str(cell)
