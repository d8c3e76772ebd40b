"""Completions of the evaluation prompts, printed during training as in TRL 1.12."""

from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState

from trl_rlp.data.hidden_characters import show_hidden
from trl_rlp.data.turns import message_text
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


MAX_ROWS = 5


class Generator(Protocol):
    """Prints completions on request."""

    def generate_completions(self, sampling: bool = False) -> None:
        """Prints completions of the evaluation prompts."""


class SampleGenerations(TrainerCallback):
    """
    Prints completions about `num_sample_generations` times per run: after the first rollout and then at equal
    intervals, which are rounded down to whole rollouts as in TRL 1.12.

    Args:
        trainer ([`Generator`]):
            The trainer.
    """

    def __init__(self, trainer: Generator):
        self.trainer = trainer

    def on_step_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prints completions at the end of a rollout, if it is time."""
        if args.num_sample_generations == 0 or state.global_step % args.steps_per_rollout:
            return
        rollout = state.global_step // args.steps_per_rollout
        interval = max(1, args.num_total_batches // args.num_sample_generations)
        if (rollout - 1) % interval == 0:
            self.trainer.generate_completions(sampling=True)


def print_table(rows: list[dict[str, Any]], console: Console | None = None) -> None:
    """
    Prints the first rows of a table.

    Args:
        rows (`list[dict[str, Any]]`):
            Rows, each with its cells by column name.
        console (`rich.console.Console`, *optional*):
            Console to print to. Defaults to standard output.
    """
    if not rows:
        return
    table = Table(*rows[0], show_lines=True)
    for row in rows[:MAX_ROWS]:
        # `Text`, because rich would read `[INST]` in a string as markup. A terminal would obey controls.
        table.add_row(*(Text(show_hidden(_format_cell(value))) for value in row.values()))
    (console or Console()).print(table)


def _format_cell(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(message_text(message) for message in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
