"""What the quickstart says while it runs: one line a stage; what the trainers print goes to a file."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

import trl_rlp.storage.run_folder as run_folder


STORY = {
    "sft": "Step 0: fine-tuning on demonstrations (π_SFT)",
    "preferences": "Step 1: simulated human preferences (D)",
    "reward_model": "Step 2: reward model r on D",
    "policy": "Step 3: policy π by PPO against r",
    "policy_samples": "Step 4: samples P of π",
    "groups": "Step 4: groups of equal answers",
    "synthetic_preferences": "Step 4: synthetic preferences (D̂)",
    "refined_reward_model": "Step 4: refined reward model r̂",
    "gate": "Step 4: gate, r̂ against r",
    "retrained_policy": "Step 5: policy π̂ by PPO from π_SFT against r̂",
    "outcome": "Measuring policies and reward models",
}
"""The stages in their order, by name."""


class Narrator(logging.Handler):
    """
    Prints a line when a stage starts.

    Args:
        console (`rich.console.Console`):
            Where to.
        start (`float`):
            `time.perf_counter()` when the run began.
    """

    def __init__(self, console: Console, start: float):
        super().__init__(logging.INFO)
        self.console, self.start = console, start

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the stage that a record of the run folder's logger is about, where it has a line in [`STORY`]."""
        if record.args and record.args[0] in STORY:
            self.console.print(f"[dim]{time.perf_counter() - self.start:4.0f} s[/dim]  {STORY[record.args[0]]}")


@contextlib.contextmanager
def narrate(log: Path, console: Console, start: float) -> Iterator[None]:
    """
    Sends what is printed inside to a file, and prints a line a stage instead.

    Args:
        log (`Path`):
            The file; it is added to.
        console (`rich.console.Console`):
            Where the lines go; its file must not be the one that `sys.stdout` stands for when it prints.
        start (`float`):
            `time.perf_counter()` when the run began.
    """
    logger, narrator = run_folder.logger, Narrator(console, start)
    level, verbosity = logger.level, transformers_logging.get_verbosity()
    logger.addHandler(narrator)
    logger.setLevel(logging.INFO)
    transformers_logging.set_verbosity_error()
    try:
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            with contextlib.redirect_stderr(file):
                yield
    finally:
        logger.removeHandler(narrator)
        logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
