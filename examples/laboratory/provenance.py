"""Where results come from: their commit, settings and seeds. Refuses results that cannot be in one table."""

import json
import math
import platform
import subprocess
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from methods import BEST_OF_N, LOOP_METHODS, METHODS, PARTS, list_results
from settings import EXPLORED_SEEDS, SETTINGS, Settings
from tables import Results, list_policies

import trl_rlp


UNKNOWN = "unknown"
"""Commit of results that were made without git, or before commits were recorded."""

DIRTY = "-dirty"
"""Mark of the commit of a tree with changes that are not committed."""

VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "numpy")
"""Packages whose versions are recorded."""

NAMED = 5
"""Number of differing settings that an error names."""

REQUIRED = ("win_rate", "gold", "kl", "right", "malformed")
"""Metrics that each policy must have. Best-of-n needs only the first three."""


@cache
def read_commit() -> str:
    """
    Reads the commit of this code.

    It is read once per process. Read it when a run starts, because the files may change while the run lasts.

    Returns:
        `str`: The commit, with `-dirty` if tracked files have changes that are not committed. `"unknown"` without git.
        If the package comes from another place with another commit, that of the package follows.
    """
    own, package = (describe_commit(Path(module).parent) for module in (__file__, str(trl_rlp.__file__)))
    return own if package == own else f"{own} with trl_rlp at {package}"


def describe_commit(folder: Path) -> str:
    """Returns the commit of the repository that contains a folder, as in [`read_commit`]."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return result.stdout.strip()


def describe_machine() -> str:
    """Describes the CPU, the threads of torch, and the versions. With others, a seed gives other figures."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    return f"{read_cpu()}, threads: {torch.get_num_threads()}, {versions}"


def read_cpu(path: Path = Path("/proc/cpuinfo")) -> str:
    """Reads the name and the model number of the CPU. Where Linux does not tell them, it is only the architecture."""
    lines = path.read_text().splitlines() if path.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']}, model {fields['model']}" if "model" in fields else fields["model name"]


def describe_settings(name: str) -> dict[str, Any]:
    """Lists the settings of this code and its methods, as they are written to the folder of the runs."""
    methods = {method: asdict(fields) for method, fields in {**METHODS, **LOOP_METHODS}.items()}
    return json.loads(json.dumps({**asdict(SETTINGS[name]), "methods": methods}))


def identify_settings(folder: Path) -> str:
    """Returns the name of the settings of a folder. Refuses a folder whose settings are not those of this code."""
    path = folder / "settings.json"
    if not path.exists():
        raise SystemExit(f"{folder} contains no runs. Run some seeds with this --output_dir first.")
    saved = json.loads(path.read_text())
    differences = {name: list_differences(saved, describe_settings(name)) for name in SETTINGS}
    name = min(differences, key=lambda name: len(differences[name]))
    if differences[name]:
        listed, hidden = differences[name][:NAMED], len(differences[name]) - NAMED
        more = f" and {hidden} more" if hidden > 0 else ""
        raise SystemExit(
            f"{path} differs from the settings {name!r} of this code in {', '.join(listed)}{more}. Report these "
            "runs with the code that made them, or run the seeds again with another --output_dir."
        )
    return name


def list_differences(saved: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Lists the settings and methods that differ."""
    sides = [
        {**side, "methods": None, **{f"methods.{name}": fields for name, fields in side.get("methods", {}).items()}}
        for side in (saved, settings)
    ]
    return [name for name in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(name) != sides[1].get(name)]


@dataclass(frozen=True)
class PartRuns:
    """
    The finished seeds of a part of the laboratory.

    Args:
        part (`str`):
            Name of the part, one of `PARTS`.
        runs (`dict[int, Results]`):
            The results of the part for each finished seed.
        unfinished (`list[int]`):
            Seeds that lack a result of the part.
        settings_name (`str`):
            Name of the settings, one of `SETTINGS`.
        commit (`str`):
            Commit of all results.
        machines (`str`):
            Machines of the results, with their seeds if there are several.
    """

    part: str
    runs: dict[int, Results]
    unfinished: list[int]
    settings_name: str
    commit: str = UNKNOWN
    machines: str = UNKNOWN

    @property
    def settings(self) -> Settings:
        return SETTINGS[self.settings_name]

    def describe(self) -> str:
        """Describes the runs in the words of a page of tables."""
        missing = f" Unfinished seeds, not included: {join(self.unfinished)}." if self.unfinished else ""
        return (
            f"{len(self.runs)} seeds: {join(self.runs)}.{missing} Settings: `{self.settings_name}`. Commit: "
            f"`{self.commit}`. Machine: {self.machines}. Each cell is the mean ± half the width of the 95% interval "
            "over seeds (Student's t)."
        )


def load_parts(folder: Path, part: str | None = None) -> list[PartRuns]:
    """
    Loads the finished seeds of a part, or of each part that has two of them. Refuses what cannot be in one table.

    Args:
        folder (`Path`):
            Folder of the runs.
        part (`str`, *optional*):
            One of `PARTS`.
    """
    settings_name = identify_settings(folder)
    loaded = [load_finished(folder, name, settings_name) for name in ([part] if part else PARTS)]
    complete = [runs for runs in loaded if len(runs.runs) >= 2]
    counts = [count_seeds(runs) for runs in loaded if runs not in complete]
    if not complete:
        words = f" with --part {part}" if part else ""
        raise SystemExit(
            f"{folder} contains {' and '.join(counts)}, but an interval needs at least two. Run more seeds{words} to "
            "their end."
        )
    checked = [check_runs(folder, runs) for runs in complete]
    for count in counts:
        print(f"Not reported: {count}. An interval needs at least two.")
    return checked


def count_seeds(loaded: PartRuns) -> str:
    """Counts the finished seeds of a part in words."""
    number = len(loaded.runs)
    return f"{number} finished {'seed' if number == 1 else 'seeds'} of the part {loaded.part!r}"


def load_finished(folder: Path, part: str, settings_name: str) -> PartRuns:
    """Loads the results of a part. A seed is finished if it has all of them."""
    required = list_results(SETTINGS[settings_name].sweep, part)
    runs, unfinished = {}, []
    paths = {int(path.parent.name.split("-")[1]): path for path in folder.glob("seed-*/results.json")}
    for seed, path in sorted(paths.items()):
        run = json.loads(path.read_text())
        if set(required) <= set(run):
            runs[seed] = {name: run[name] for name in required}
        else:
            unfinished.append(seed)
    return PartRuns(part, runs, unfinished, settings_name)


def check_runs(folder: Path, loaded: PartRuns) -> PartRuns:
    """Refuses explored seeds, copies, broken results, and results without one known commit. Adds the commit."""
    is_smoke = loaded.settings_name == "smoke"
    if not is_smoke:
        check_seeds(folder, loaded)
    check_metrics(folder, loaded)
    commit = find_commit(collect_recorded(loaded.runs, "commit"))
    if loaded.part == "ours" and not is_smoke:
        require_known(commit)
    machines = describe_machines(collect_recorded(loaded.runs, "machine"))
    return replace(loaded, commit=commit, machines=machines)


def check_seeds(folder: Path, loaded: PartRuns) -> None:
    """Refuses seeds that were used to choose the settings, and a seed whose results are those of another seed."""
    explored = [seed for seed in loaded.runs if seed in EXPLORED_SEEDS[loaded.part]]
    if explored:
        raise SystemExit(
            f"{name_seeds(explored)} used to choose the settings of the part {loaded.part!r}. Move the folders of "
            f"explored seeds out of {folder} and report others, or report another part with --part."
        )
    require_distinct({seed: run["sft"] for seed, run in loaded.runs.items()}, str(folder))


def require_distinct(results: dict[int, Any], place: str) -> None:
    """Refuses a seed whose π_SFT has the results of another seed."""
    first: dict[str, int] = {}
    for seed, values in results.items():
        original = first.setdefault(json.dumps(values, sort_keys=True), seed)
        if original != seed:
            raise SystemExit(
                f"Seed {seed} in {place} has the results of seed {original}, so one is a copy of the other. Remove "
                "the copy."
            )


def check_metrics(folder: Path, loaded: PartRuns) -> None:
    """Refuses policies that lack a metric of the tables, or whose metric is not a finite number."""
    for seed, run in loaded.runs.items():
        policies = list_policies(run)
        for name in run:
            for policy in [f"{name} ppo", f"{name} spg"] if name.startswith("sweep ") else [name]:
                metrics = policies.get(policy, {}).get("policy", {})
                for metric in REQUIRED[:3] if name in BEST_OF_N else REQUIRED:
                    if not is_finite(metrics.get(metric)):
                        raise SystemExit(
                            f"Seed {seed} has no finite {metric!r} of {policy!r}, but {metrics.get(metric)}. Remove "
                            f"{name!r} from its results.json in {folder}, and run the seed again."
                        )


def is_finite(value: Any) -> bool:
    """Checks whether a metric is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def find_commit(commits: dict[int, set[str]]) -> str:
    """Returns the only commit of the results of all seeds. Refuses different ones."""
    seeds: dict[str, list[int]] = {}
    for seed, names in commits.items():
        for commit in sorted(names):
            seeds.setdefault(commit, []).append(seed)
    if len(seeds) > 1:
        listed = ", ".join(f"{commit} (seeds {join(numbers)})" for commit, numbers in seeds.items())
        raise SystemExit(
            f"The results come from different commits: {listed}. Run all seeds again at one commit, with another "
            "--output_dir."
        )
    return next(iter(seeds))


def require_known(commit: str) -> None:
    """Refuses results from code that nobody can find again."""
    if DIRTY in commit:
        raise SystemExit(
            f"The results were made at {commit}, with changes that are not committed. Commit the changes and run the "
            "seeds again, with another --output_dir."
        )
    if UNKNOWN in commit:
        raise SystemExit(
            f"The commit of the results is {commit!r}, so the code that made them is not known. Run the seeds "
            "again in a clone of the repository, with another --output_dir."
        )


def collect_recorded(runs: dict[int, Results], field: str) -> dict[int, set[str]]:
    """
    Collects what each seed has recorded under `commit` or `machine`, or "unknown" for results without it.

    An entry of the sweep may contain results with their own fields.
    """

    def list_recorded(result: dict[str, Any]) -> set[str]:
        parts = [result, *(part for part in result.values() if isinstance(part, dict))]
        return {part[field] for part in parts if field in part} or {UNKNOWN}

    return {seed: set().union(*map(list_recorded, run.values())) for seed, run in runs.items()}


def describe_machines(machines: dict[int, set[str]]) -> str:
    """Describes the machines of all seeds. Refuses a seed of several, because its policies are compared in pairs."""
    seeds: dict[str, list[int]] = {}
    for seed, names in machines.items():
        if len(names) > 1:
            raise SystemExit(
                f"The results of seed {seed} come from different machines, threads or versions: "
                f"{'; '.join(sorted(names))}. They cannot be compared in pairs. Run the seed again on one machine."
            )
        seeds.setdefault(next(iter(names)), []).append(seed)
    if len(seeds) == 1:
        return next(iter(seeds))
    return "; ".join(f"{name} (seeds {join(numbers)})" for name, numbers in seeds.items())


def name_seeds(seeds: list[int]) -> str:
    """Names seeds as the subject of a sentence in the past."""
    return f"Seed {seeds[0]} was" if len(seeds) == 1 else f"Seeds {join(seeds)} were"


def join(seeds: Any) -> str:
    """Joins seeds by commas."""
    return ", ".join(map(str, seeds))
