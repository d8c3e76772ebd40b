"""The runs of the experiment with policies on a real model: read from folders and files, and checked."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provenance import (
    collect_recorded,
    describe_machines,
    find_commit,
    is_finite,
    join,
    name_seeds,
    require_distinct,
    require_known,
)
from real_methods import METHODS, PICK_METHODS, list_results, name_result
from real_seed_table import PARTS
from real_settings import EXPLORED_SEEDS, SETTINGS
from real_tables import Runs

from trl_rlp.storage.json_files import read_json


DATA = "policies.json"
"""File with the metrics of all seeds of a report."""

SHARED = ("pi_sft", "picks")
"""Results that every seed needs."""


@dataclass(frozen=True)
class LoadedRuns:
    """
    Runs that can be in one table.

    Args:
        runs (`dict[int, dict]`):
            For each seed the metrics of its stages by name, with their `seconds`.
        unfinished (`dict[int, list[str]]`):
            For each seed that is not in `runs`, the results that it lacks and another seed has.
        commit (`str`):
            Commit of all results.
        machines (`str`):
            Machines of the results, with their seeds if there are several.
    """

    runs: Runs
    unfinished: dict[int, list[str]]
    commit: str
    machines: str


def load_runs(folder: Path, settings_name: str, data: Sequence[Path] = ()) -> LoadedRuns:
    """Loads the metrics of all stages by seed. Refuses runs that cannot be in one table."""
    loaded = read_folder(folder, settings_name)
    for path in data:
        others = read_data(path, settings_name)
        if repeated := sorted(set(loaded) & set(others)):
            raise SystemExit(
                f"{path} contains seeds that {folder} or another file has, too: {join(repeated)}. Each seed counts "
                "once. Leave one of the two out."
            )
        loaded |= others
    unfinished = find_unfinished(loaded, settings_name)
    runs = {seed: run for seed, run in sorted(loaded.items()) if seed not in unfinished}
    if len(runs) < 2:
        places = ", ".join(map(str, (folder, *data)))
        missing = "".join(f" Seed {seed} lacks {', '.join(map(repr, names))}." for seed, names in unfinished.items())
        raise SystemExit(
            f"Seeds that can be reported: {join(runs) or 'none'} ({places}). An interval needs two or more.{missing}"
        )
    is_smoke = settings_name == "smoke"
    commit = check_runs(runs, is_smoke)
    return LoadedRuns(runs, unfinished, commit, describe_machines(collect_recorded(runs, "machine")))


def find_unfinished(runs: Runs, settings_name: str) -> dict[int, list[str]]:
    """
    Finds the seeds that lack a result which another seed has, and lists what they lack.

    Such a seed is left out as a whole. Otherwise, all others would lose the results that it lacks, and p would be
    corrected for fewer rows.
    """
    pairs = list_results([*METHODS, *PICK_METHODS], SETTINGS[settings_name].kl_coefs)
    policies = [name for name in (name_result(*pair) for pair in pairs) if any(name in run for run in runs.values())]
    missing = {seed: [name for name in (*SHARED, *policies) if name not in run] for seed, run in sorted(runs.items())}
    return {seed: names for seed, names in missing.items() if names}


def read_folder(folder: Path, settings_name: str) -> Runs:
    """Reads the metrics of all seeds of a folder."""
    runs: Runs = {}
    for path in sorted(file.parent for file in folder.glob("seed-*/run.json")):
        run = read_json(path / "run.json")
        if path.name != f"seed-{run['seed']}":
            raise SystemExit(f"{path} contains a run of seed {run['seed']}. Restore its name, or remove it.")
        require_settings(path, run["settings"], settings_name)
        stages = {file.parent.name: read_json(file) for file in sorted(path.glob("*/stage.json"))}
        runs[run["seed"]] = {name: stage["metrics"] | {"seconds": stage["seconds"]} for name, stage in stages.items()}
    return runs


def read_data(path: Path, settings_name: str) -> Runs:
    """Reads the metrics of all seeds from the file of another report."""
    try:
        data = read_json(path)
        settings, runs = data["settings"], {int(seed): run for seed, run in data["seeds"].items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise SystemExit(
            f"{path} is no {DATA} of this report ({type(error).__name__}: {error}). Run `report` where its seeds ran."
        ) from None
    require_settings(path, settings, settings_name)
    return runs


def require_settings(path: Path, settings: dict[str, Any], settings_name: str) -> None:
    """Refuses runs with other settings than those of this code."""
    if settings != json.loads(json.dumps(asdict(SETTINGS[settings_name]))):
        raise SystemExit(
            f"{path} was run with other settings than {settings_name!r} of this code. Report it with the code "
            "that made it, or run the seed again with another --output_dir."
        )


def check_runs(runs: Runs, is_smoke: bool) -> str:
    """Refuses explored seeds, copies, policies without a share of correct answers, and results without one commit."""
    explored = sorted(EXPLORED_SEEDS & set(runs))
    if explored and not is_smoke:
        raise SystemExit(
            f"{name_seeds(explored)} used to choose the settings. Leave such seeds out, and report seeds that were "
            "run after the choice."
        )
    for seed, run in runs.items():
        for name, metrics in run.items():
            broken = [part for part in PARTS if part in metrics and not is_finite(metrics[part].get("right"))]
            if broken:
                raise SystemExit(
                    f"{name!r} of seed {seed} has no finite share of correct answers ({broken[0]}). Remove this "
                    "stage, and run the seed again."
                )
    commit = find_commit(collect_recorded(runs, "commit"))
    if not is_smoke:
        require_known(commit)
        require_distinct({seed: [run["pi_sft"].get(part) for part in PARTS] for seed, run in runs.items()}, "the runs")
    return commit
