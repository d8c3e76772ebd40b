"""
Policies of SmolLM2-135M-Instruct on questions with known answers: PPO, GRPO, published SPG, and what is ours.

    python examples/laboratory/real_policies.py run --seeds 400-404
    python examples/laboratory/real_policies.py run --seeds 400 --methods ppo anchored --kl_coefs 0.1
    python examples/laboratory/real_policies.py report

Each seed has its own split of the questions, its own π_SFT, D and r. Every policy starts from π_SFT. It is evaluated
on the questions that it was trained on (U) and on held-out questions, with new samples and the known answers. The same
command resumes an interrupted run after its last finished stage, and prints a table of each seed. `report` writes
`policies.md` and `policies.json`, with intervals over seeds. `report --data FILE` adds the seeds of such a JSON file,
for example from another machine.

The settings were chosen on seeds 90 and 91, with the known answers or r as the reward. Only the learning rate on picks
was chosen with methods of ours: it is the larger of two values that were tried with SFT and DPO on seed 91. The report
refuses both seeds.
`--settings smoke` only checks that everything runs.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laboratory import parse_seeds
from real_methods import METHODS, PICK_METHODS
from real_policy_report import write_report
from real_seed_table import write_seed_page
from real_settings import SETTINGS

from trl_rlp.quickstart import load_questions, load_smollm2
from trl_rlp.storage.run_folder import RunFolder


def run_seeds(
    folder: Path, seeds: list[int], settings_name: str, methods: list[str], kl_coefs: list[float] | None, threads: int
) -> None:
    """Runs the selected methods for every seed."""
    import torch
    import transformers
    from real_policy_run import RealRun

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    settings, model, questions = SETTINGS[settings_name], load_smollm2(), load_questions()
    for seed in seeds:
        path = folder / f"seed-{seed}"
        run = RealRun(path, seed, settings, model, questions)
        with log_to_file(folder / f"seed-{seed}.txt"):
            run.run_methods(methods, kl_coefs or list(settings.kl_coefs))
        print(write_seed_page(path, seed))


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Prints the name of each stage that starts inside a `with` block. All other output goes to a file."""
    console, start = sys.stdout, time.perf_counter()

    def print_stage(run: RunFolder, name: str, arguments: dict[str, Any]) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {run.path.name}: {name}", file=console, flush=True)

    with (
        path.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        RunFolder.on_start(print_stage),
    ):
        yield


def main() -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--settings", choices=SETTINGS, default="smollm2")
    shared.add_argument("--output_dir", type=Path, default=Path("laboratory_runs/policies"), help="folder of the runs")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[shared], help="run the methods of some seeds")
    run.add_argument("--seeds", type=parse_seeds, required=True, help="seeds, as in 400-404")
    run.add_argument("--methods", nargs="+", choices=[*METHODS, *PICK_METHODS], default=[*METHODS, *PICK_METHODS])
    run.add_argument("--kl_coefs", nargs="+", type=float, help="β of the methods that have one, default: all")
    run.add_argument("--threads", type=int, default=1, help="threads, 1 if commands run side by side")
    report = commands.add_parser("report", parents=[shared], help="write the tables of all seeds")
    report.add_argument("--data", nargs="+", type=Path, default=[], help="`policies.json` of other seeds")
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(write_report(arguments.output_dir, arguments.settings, arguments.data))
        return
    unknown = [kl_coef for kl_coef in arguments.kl_coefs or [] if kl_coef not in SETTINGS[arguments.settings].kl_coefs]
    if unknown:
        allowed = SETTINGS[arguments.settings].kl_coefs
        run.error(f"--kl_coefs must be among {allowed} of these settings, but got {unknown}")
    if arguments.threads < 1:
        run.error("--threads must be at least 1")
    run_seeds(
        arguments.output_dir,
        arguments.seeds,
        arguments.settings,
        arguments.methods,
        arguments.kl_coefs,
        arguments.threads,
    )


if __name__ == "__main__":
    main()
