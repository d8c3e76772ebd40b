"""Commands under `accelerate launch` or `torchrun`: only the main process speaks, and an error ends all processes."""

import logging
import os
import sys
import time
import warnings

import datasets
import torch
import transformers


TURN_SECONDS = 5.0
"""How long a process with an error lets the main process speak first. The launcher ends all others after that."""

SAID_BY_ALL = "trl_rlp.storage.claims"
"""Logger of what only one process knows: that it takes over the work of a process that died."""


def silence_other_processes() -> None:
    """
    Silences logs, warnings and progress bars of all processes but the main one. Errors are still printed.

    It reads the rank from the variables of the launcher, because a state of accelerate would start the process group
    before a trainer's configuration has chosen its options.
    """
    if _read_rank() == 0:
        return
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger(SAID_BY_ALL).setLevel(logging.WARNING)
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    # Trainers set the level again, so the handler has to go.
    transformers.logging.add_handler(logging.NullHandler())
    transformers.logging.disable_default_handler()
    transformers.logging.disable_progress_bar()


def end_with_error(message: str, error: BaseException) -> int:
    """
    Prints an error in one line, and ends the process if there are several.

    A launcher ends all processes when one of them ends with an error, wherever the others wait. Often all processes
    have the same error, and only the main one prints it. So another process first waits for [`TURN_SECONDS`]. If it is
    still alive then, the error is its own. The main process lets others speak if it only lost the connection to them.

    Args:
        message (`str`):
            The line.
        error (`BaseException`):
            The error.

    Returns:
        `int`: Exit status 2, if there is only one process.
    """
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_launched and (_read_rank() > 0 or _has_lost_connection(error)):
        time.sleep(2 * TURN_SECONDS if _has_lost_connection(error) else TURN_SECONDS)
    print(message, file=sys.stderr, flush=True)
    if is_launched:
        # Other processes wait in a collective. A normal end would wait for them to leave the process group.
        sys.stdout.flush()
        os._exit(2)
    return 2


def _read_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _has_lost_connection(error: BaseException) -> bool:
    is_refused = isinstance(error, RuntimeError) and "by peer" in str(error)  # Gloo has no error of its own
    return is_refused or isinstance(error, torch.distributed.DistError)
