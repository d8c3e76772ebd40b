"""Progress of the quickstart: one line for each stage on the console, and the trainers' output in a log file."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging

from trl_rlp.storage.run_folder import RunFolder


STAGE_TITLES = {
    "sft": "Step 0: fine-tuning on demonstrations (π_SFT)",
    "preferences": "Step 1: simulated human preferences (D)",
    "reward_model": "Step 2: reward model r on D",
    "policy": "Step 3: policy π by PPO against r",
    "policy_samples": "Step 4: samples P of π",
    "groups": "Step 4: groups of completions with the same meaning",
    "synthetic_preferences": "Step 4: synthetic preferences (D̂)",
    "refined_reward_model": "Step 4: refined reward model r̂",
    "gate": "Step 4: gate, r̂ against r",
    "retrained_policy": "Step 5: policy π̂ by PPO from π_SFT against r̂",
    "outcome": "Evaluation of the policies and reward models",
}
"""The console line of each stage, in the order of the stages."""


@contextlib.contextmanager
def narrate(log: Path, console: Console, start: float) -> Iterator[None]:
    """
    Prints one line for each stage that starts inside a `with` block. All other output goes to a file.

    Only the stages in [`STAGE_TITLES`] get a line.

    Args:
        log (`Path`):
            File for standard output and standard error. New output is appended.
        console (`rich.console.Console`):
            Console for the lines. It must be created with an explicit `file`, because a console without one writes to
            the redirected `sys.stdout`.
        start (`float`):
            `time.perf_counter()` at the start of the run.
    """

    def print_stage(run: RunFolder, name: str, arguments: dict[str, Any]) -> None:
        if name in STAGE_TITLES:
            console.print(f"[dim]{time.perf_counter() - start:4.0f} s[/dim]  {STAGE_TITLES[name]}")

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with (
            log.open("a", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
            RunFolder.on_start(print_stage),
        ):
            yield
    finally:
        logging.set_verbosity(verbosity)
