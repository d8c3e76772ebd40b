"""`trl-rlp COMMAND`: picks the command, and turns an expected error into one line."""

import importlib
import os
import sys
from collections.abc import Sequence


COMMANDS = {
    "sample": "draw n completions a prompt from a model or a server",
    "prefer": "turn samples into synthetic preferences (spg, select_all, reward, rlaif)",
    "reward": "train a reward model, plain or refined on policy samples (uml, spg, uml+spg)",
    "run": "run Algorithm 1 from preferences and prompts to a retrained policy",
    "evaluate": "win rates, a reward model on labeled pairs, or samples of a policy",
    "quickstart": "run Algorithm 1 on SmolLM2-135M in ten minutes, without GPU, account or Hub",
}
EXPECTED_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, ArithmeticError)
TRACEBACK = "TRL_RLP_TRACEBACK"


def usage() -> str:
    """
    Gives what `trl-rlp --help` prints.

    Returns:
        `str`.
    """
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: trl-rlp COMMAND [--config FILE.yaml] [--option value ...]",
            "",
            "RLP, reward learning on policy (arXiv 2403.19279), for TRL.",
            "",
            "commands:",
            *lines,
            "",
            "`trl-rlp COMMAND --help` lists the options of a command. Each may stand in a YAML file; flags go first.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Words after `trl-rlp`; those of the process if `None`.

    Returns:
        `int`: exit status, 0 if all went well, 2 if the input was at fault. An expected error is printed as one line;
        with the environment variable `TRL_RLP_TRACEBACK` set it comes with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        print(usage())
        return 0 if words else 2
    command, *options = words
    if command not in COMMANDS:
        print(f"trl-rlp: no command '{command}'. Choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        importlib.import_module(f"trl_rlp.cli.{command}").main(options)
    except EXPECTED_ERRORS as error:
        if os.environ.get(TRACEBACK):
            raise
        message = " ".join(str(error).split())
        print(f"trl-rlp {command}: {message} [{TRACEBACK}=1 shows where]", file=sys.stderr)
        return 2
    importlib.import_module("trl_rlp.storage.processes").leave_process_group()
    return 0
