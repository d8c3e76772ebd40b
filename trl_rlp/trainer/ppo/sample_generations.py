"""Completions of the evaluation prompts, printed now and then, as the former trainer did."""

from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState

from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


MOST_ROWS = 5


class Generator(Protocol):
    """What can be asked for completions."""

    def generate_completions(self, sampling: bool = False) -> None:
        """Prints completions of the evaluation prompts."""


class SampleGenerations(TrainerCallback):
    """
    Has completions printed `num_sample_generations` times in a run, after the first rollout and then evenly.

    Args:
        trainer ([`Generator`]):
            The trainer.
    """

    def __init__(self, trainer: Generator):
        self.trainer = trainer

    def on_step_end(self, args: RLPPPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for completions where a rollout ends whose turn it is."""
        if args.num_sample_generations == 0 or state.global_step % args.steps_per_rollout:
            return
        rollout = state.global_step // args.steps_per_rollout
        every = max(1, args.num_total_batches // args.num_sample_generations)
        if (rollout - 1) % every == 0:
            self.trainer.generate_completions(sampling=True)


def print_table(rows: list[dict[str, Any]], console: Console | None = None) -> None:
    """
    Prints the first rows of a table.

    Args:
        rows (`list[dict[str, Any]]`):
            One entry a row, columns by name.
        console (`rich.console.Console`, *optional*):
            Where to. Standard output if `None`.
    """
    if not rows:
        return
    table = Table(*rows[0], show_lines=True)
    for row in rows[:MOST_ROWS]:
        # As plain text: in a string `[INST]` would be read as markup.
        table.add_row(*(Text(_text(value)) for value in row.values()))
    (console or Console()).print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(message["content"] for message in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
