"""
The laboratory: every method on a task with a known gold reward.

    python examples/laboratory/laboratory.py seed --seed 0          # all methods for one seed
    python examples/laboratory/laboratory.py seeds --seeds 0-9      # many seeds in parallel, resumes if interrupted
    python examples/laboratory/laboratory.py report                 # tables and figures of the finished seeds
    python examples/laboratory/laboratory.py seed --methods sft "anchored, β 0.1"        # selected results only
    python examples/laboratory/laboratory.py seeds --seeds 400-409 --part ours           # our methods, beside SPG

`--settings smoke` takes about a minute. It only checks that everything runs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from methods import PARTS, list_results
from settings import SETTINGS


def parse_seeds(text: str) -> list[int]:
    """Parses `0-9`, `0,3,5` or a combination of both."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} contains no seed, or a seed more than once.")
    return seeds


def run_seed(folder: Path, seed: int, name: str, selected: list[str]) -> None:
    """Runs the selected methods for one seed on one core. Prints the tables of their policies and refinements."""
    import datasets
    import torch
    import transformers
    from loop_tables import build_refinement_table, build_seed_table, list_refinements
    from seed_run import SeedRun

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    check_settings(folder, name)
    start = time.perf_counter()
    run = SeedRun(folder / f"seed-{seed}", seed, SETTINGS[name])
    run.run(selected)
    results = {method: run.results[method] for method in selected}
    print(build_seed_table(results))
    if list_refinements({seed: results}):
        print("\n" + build_refinement_table({seed: results}))
    print(f"seed {seed}: {time.perf_counter() - start:.0f} s")


def check_settings(folder: Path, name: str) -> None:
    """Writes the settings and methods to a new folder. Refuses a folder with different ones."""
    from provenance import describe_settings

    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / "settings.json", describe_settings(name)
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")  # several seeds may start at the same time
        partial.write_text(json.dumps(settings, indent=1))
        os.replace(partial, path)
    elif json.loads(path.read_text()) != settings:
        raise SystemExit(f"{folder} contains runs with different settings or methods. Choose another --output_dir.")


def run_seeds(folder: Path, seeds: list[int], name: str, selected: list[str], workers: int) -> None:
    """Runs the selected methods for many seeds, each seed in its own process."""
    waiting, running, failed = list(seeds), [], []
    while waiting or running:
        while waiting and len(running) < workers:
            seed = waiting.pop(0)
            words = ["seed", "--seed", str(seed), "--output_dir", str(folder), "--settings", name]
            words += ["--methods", *selected]
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
        raise SystemExit(f"Seeds {failed} failed. Run the same command again to resume them.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["seed", "seeds", "report"])
    parser.add_argument("--output_dir", type=Path, default=Path("laboratory_runs"), help="folder of the runs")
    parser.add_argument("--settings", choices=SETTINGS, default="laboratory", help="budget of the runs")
    parser.add_argument("--seed", type=int, default=0, help="the seed of `seed`")
    parser.add_argument("--seeds", type=parse_seeds, default=list(range(10)), help="the seeds of `seeds`, as in 0-9")
    parser.add_argument("--part", choices=PARTS, help="the paper's methods or ours, default: both")
    parser.add_argument("--methods", nargs="+", help="results to compute, by their names, default: all of the part")
    parser.add_argument("--workers", type=int, default=2, help="number of seeds that run at the same time")
    parser.add_argument("--report_dir", type=Path, help="folder for tables and figures, default: output_dir/report")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error("--workers must be at least 1")
    sweep = SETTINGS[arguments.settings].sweep
    results = list_results(sweep)
    selected = arguments.methods or list_results(sweep, arguments.part)
    if unknown := [name for name in selected if name not in results]:
        parser.error(f"--methods has no {unknown[0]!r}. Choose from: {', '.join(results)}")
    if arguments.command == "seed":
        run_seed(arguments.output_dir, arguments.seed, arguments.settings, selected)
    elif arguments.command == "seeds":
        run_seeds(arguments.output_dir, arguments.seeds, arguments.settings, selected, arguments.workers)
    else:
        from report import write_report

        write_report(arguments.output_dir, arguments.report_dir or arguments.output_dir / "report", arguments.part)


if __name__ == "__main__":
    main()
