"""
The laboratory: does RLP help, where the gold reward is known?

    python examples/laboratory/laboratory.py seed --seed 0          # all methods for one seed
    python examples/laboratory/laboratory.py seeds --seeds 0-9      # many seeds side by side; goes on where it stopped
    python examples/laboratory/laboratory.py report                 # tables and figures from what was run

`--settings smoke` is a run of a minute that shows nothing but that all of it works.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from methods import METHODS
from settings import SETTINGS


def seeds_of(text: str) -> list[int]:
    """Reads `0-9`, `0,3,5` or both."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names no seed, or one twice.")
    return seeds


def run_seed(folder: Path, seed: int, name: str) -> None:
    """Runs all methods for one seed, on one core."""
    import datasets
    import torch
    import transformers
    from seed_run import SeedRun

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    claim(folder, name)
    start = time.perf_counter()
    SeedRun(folder / f"seed-{seed}", seed, SETTINGS[name]).run()
    print(f"seed {seed}: {time.perf_counter() - start:.0f} s")


def claim(folder: Path, name: str) -> None:
    """Refuses a folder of other settings or methods."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = {method: asdict(fields) for method, fields in METHODS.items()}
    path, settings = folder / "settings.json", json.loads(json.dumps({**asdict(SETTINGS[name]), "methods": methods}))
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")  # several seeds may begin at once
        partial.write_text(json.dumps(settings, indent=1))
        os.replace(partial, path)
    elif json.loads(path.read_text()) != settings:
        raise SystemExit(f"{folder} holds runs with other settings or methods. Choose another --output_dir.")


def run_seeds(folder: Path, seeds: list[int], name: str, workers: int) -> None:
    """Runs many seeds, each in a process of its own."""
    waiting, running, failed = list(seeds), [], []
    while waiting or running:
        while waiting and len(running) < workers:
            seed = waiting.pop(0)
            words = ["seed", "--seed", str(seed), "--output_dir", str(folder), "--settings", name]
            folder.mkdir(parents=True, exist_ok=True)
            log = (folder / f"seed-{seed}.log").open("a")
            process = subprocess.Popen([sys.executable, __file__, *words], stdout=log, stderr=subprocess.STDOUT)
            running.append((seed, process))
        for seed, process in list(running):
            if process.poll() is not None:
                running.remove((seed, process))
                failed += [seed] if process.returncode else []
                print(f"seed {seed}: {'failed, see its log' if process.returncode else 'done'}", flush=True)
        time.sleep(0.5)
    if failed:
        raise SystemExit(f"Seeds {failed} failed; the same command goes on with them.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["seed", "seeds", "report"])
    parser.add_argument("--output_dir", type=Path, default=Path("laboratory_runs"))
    parser.add_argument("--settings", choices=SETTINGS, default="laboratory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=seeds_of, default=list(range(10)))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report_dir", type=Path, help="where tables and figures go; output_dir/report if left out")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error("--workers must be at least 1")
    if arguments.command == "seed":
        run_seed(arguments.output_dir, arguments.seed, arguments.settings)
    elif arguments.command == "seeds":
        run_seeds(arguments.output_dir, arguments.seeds, arguments.settings, arguments.workers)
    else:
        from report import write_report

        write_report(arguments.output_dir, arguments.report_dir or arguments.output_dir / "report")


if __name__ == "__main__":
    main()
