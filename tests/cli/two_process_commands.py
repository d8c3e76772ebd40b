"""
Runs the commands, in one process or under `torchrun --nproc_per_node 2`: each writes to a folder and prints.

At last, process 1 cannot read a file. The main process waits for it then, and nobody may hang.
"""

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path

import torch

import trl_rlp.cli.evaluate
from trl_rlp.cli import main
from trl_rlp.storage.processes import process_state


TRAINING = {
    "use_cpu": True,
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.0,
    "report_to": "none",
    "save_strategy": "no",
}
"""Without a learning rate, the weights do not depend on the number of processes."""


def list_commands(data: Path, out: Path) -> dict[str, list[str]]:
    """Returns the options of each command."""
    words = {
        "sample": {"model": data / "policy", "prompts": data / "prompts.jsonl", "num_generations": 3}
        | {"max_new_tokens": 8},
        "anchors": {"samples": data / "samples.jsonl", "equivalence": "exact"},
        "prefer": {"samples": data / "samples.jsonl", "reward_model": data / "reward", "equivalence": "exact"},
        "evaluate": {"outputs": data / "outputs.json", "reference_outputs": data / "reference.json"}
        | {"judge": "language_model", "judge_model": data / "policy", "tolerance": 1}
        | {"reward_model": data / "reward", "preferences": data / "preferences.jsonl"}
        | {"samples": data / "samples.jsonl", "policy": data / "policy", "reference_policy": data / "reference"},
        "reward": {"model_name_or_path": data / "policy", "preference_dataset": data / "preferences.jsonl"}
        | {"policy_samples": data / "samples.jsonl", "labeling_reward_model": data / "reward"}
        | {"method": "spg", "equivalence": "exact", "eval_preference_dataset": data / "preferences.jsonl"}
        | {name: str(value) for name, value in TRAINING.items()},
        "run": {"config": data / "run.json"},
    }
    return {
        name: [str(word) for pair in options.items() for word in (f"--{pair[0]}", pair[1])]
        + ["--output_dir", str(out / name)]
        for name, options in words.items()
    }


def run_commands(data: Path, out: Path) -> None:
    """
    Runs all commands one after the other. What process i prints is in `printed-i.json`.

    For all processes but the main one, this includes logs, warnings and progress bars.
    """
    printed = {}
    for name, options in list_commands(data, out).items():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.ExitStack() as stack:
            if os.environ.get("RANK", "0") != "0":
                stack.enter_context(contextlib.redirect_stderr(text))
            importlib.import_module(f"trl_rlp.cli.{name}").main(options)
        printed[name] = text.getvalue()
    (out / f"printed-{process_state().process_index}.json").write_text(json.dumps(printed))


def read_damaged(path):
    raise OSError(f"{path} is damaged.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    importlib.import_module("trl_rlp.cli.launched_processes").silence_other_processes()
    run_commands(data, out)
    if process_state().process_index == 1:
        trl_rlp.cli.evaluate.load_pairs = read_damaged
    options = list_commands(data, out)["evaluate"]
    sys.exit(main(["evaluate", *options, "--output_dir", str(out / "damaged")]))
