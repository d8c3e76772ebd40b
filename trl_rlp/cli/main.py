"""The command line `trl-rlp COMMAND`. It runs a command and prints an expected error in one line."""

import importlib
import os
import sys
from collections.abc import Sequence

from jinja2 import TemplateError
from safetensors import SafetensorError

from trl_rlp import __version__
from trl_rlp.cli.option_names import name_options


COMMANDS = {
    "sample": "sample n completions per prompt from a model or a server",
    "anchors": "make anchors from a model or from samples: the majority answer of each prompt",
    "prefer": "make synthetic preferences from samples (spg, select_all, reward, rlaif, majority_best)",
    "reward": "train a reward model, plain or refined on policy samples (uml, spg, uml+spg)",
    "run": "run Algorithm 1 from preferences and prompts to a retrained policy",
    "evaluate": "evaluate model outputs, a reward model, or policy samples",
    "report": "write one HTML file about a run, a training, samples or preferences",
    "quickstart": "run Algorithm 1 on SmolLM2-135M in ten minutes, without a GPU, an account or the Hub",
}
# safetensors has its own error for a checkpoint that cannot be written, as on a full disk. TRL's trainers apply chat
# templates, which may refuse messages.
EXPECTED_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    ImportError,
    ArithmeticError,
    SafetensorError,
    TemplateError,
)
TRACEBACK = "TRL_RLP_TRACEBACK"


def usage() -> str:
    """
    Returns the help text of `trl-rlp --help`.

    Returns:
        `str`: The help text.
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
            "`trl-rlp COMMAND --help` lists the options of a command. Options can also be in a YAML file. Options on",
            "the command line override it. `trl-rlp --version` prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    An expected error is printed in one line. Set the environment variable `TRL_RLP_TRACEBACK` to see its traceback.

    Args:
        argv (`Sequence[str]`, *optional*):
            Command-line arguments after `trl-rlp`. Defaults to those of the process.

    Returns:
        `int`: Exit status, 0 for success and 2 for an error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"trl-rlp {__version__}")
        return 0
    command, *options = words
    if command not in COMMANDS:
        print(f"trl-rlp: unknown command '{command}'. Choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if command == "quickstart":
        # OpenMP reads it when PyTorch is loaded. Threads that wait then leave their core to the threads that work. By
        # default they spin, and on a busy machine the quickstart takes many times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        module = importlib.import_module(f"trl_rlp.cli.{command}")
        importlib.import_module("trl_rlp.cli.launched_processes").silence_other_processes()
        module.main(options)
    except EXPECTED_ERRORS as error:
        if os.environ.get(TRACEBACK):
            raise
        message = name_options(command, " ".join(str(error).split()))
        line = f"trl-rlp {command}: {message} [Set {TRACEBACK}=1 to see the traceback.]"
        return importlib.import_module("trl_rlp.cli.launched_processes").end_with_error(line, error)
    importlib.import_module("trl_rlp.storage.processes").leave_process_group()
    return 0
