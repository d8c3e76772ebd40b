"""Tables over many seeds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from methods import HEADS, METHODS

from trl_rlp import seed_interval


Results = dict[str, Any]
Value = Callable[[Results], float | None]

TABLES = {
    "main": ["sft", "best-of-n", "ppo", "uml", "spg", "uml+spg"],
    "losses": ["ppo", "uml", "mvi", "infomax", "cl"],
    "generators": ["ppo", "spg", "select_all", "reward", "rlaif"],
    "controls": ["ppo", "spg", *(name for name, method in METHODS.items() if method.table == "controls")],
    "last token": [
        HEADS["last_token"],
        *(name for name, method in METHODS.items() if method.table == "last token"),
    ],
}
FIGURES = ("win_rate", "gold", "right", "kl", "proxy", "malformed", "characters")
EQUAL_KL = (0.5, 1.0, 2.0, 4.0)


def load_runs(folder: Path) -> tuple[dict[int, Results], list[int]]:
    """Results of the seeds that are finished, and the seeds that are not."""
    if not (folder / "settings.json").exists():
        raise SystemExit(f"{folder} holds no runs. Run some seeds with this --output_dir first.")
    sweep = {f"sweep {beta}" for beta in json.loads((folder / "settings.json").read_text())["sweep"]}
    runs, unfinished = {}, []
    paths = {int(path.parent.name.split("-")[1]): path for path in folder.glob("seed-*/results.json")}
    for seed, path in sorted(paths.items()):
        run = json.loads(path.read_text())
        if {*METHODS, *HEADS.values(), "sft", "best-of-n", *sweep} <= set(run):
            runs[seed] = run
        else:
            unfinished.append(seed)
    if len(runs) < 2:
        raise SystemExit(f"{folder} holds {len(runs)} finished seeds; an interval needs at least two.")
    return runs, unfinished


def sweep_of(runs: dict[int, Results]) -> list[str]:
    """Names of the sweep's entries, the smallest β first."""
    names = [name for name in next(iter(runs.values())) if name.startswith("sweep ")]
    return sorted(names, key=lambda name: float(name[6:]))


def over_seeds(runs: dict[int, Results], value: Value) -> dict[str, float] | None:
    """Mean and interval of a figure, or `None` where a seed has none."""
    values = [value(run) for run in runs.values()]
    return None if any(one is None for one in values) else seed_interval(values)


def policy_figure(method: str, name: str) -> Value:
    """A figure of a method's policy."""
    return lambda run: run[method]["policy"].get(name)


def difference(first: Value, second: Value) -> Value:
    """First minus second, on one seed."""
    return lambda run: None if None in (first(run), second(run)) else first(run) - second(run)


def gold_at(run: Results, method: str, kl: float, left_out: str = "") -> float | None:
    """Gold reward that a method's policies of the sweep reach at a KL, between the two nearest; `None` outside."""
    policies = [run[name][method]["policy"] for name in run if name.startswith("sweep ") and name != left_out]
    points = sorted([(0.0, run["sft"]["policy"]["gold"])] + [(policy["kl"], policy["gold"]) for policy in policies])
    distances, golds = zip(*points, strict=True)
    return float(np.interp(kl, distances, golds)) if kl <= distances[-1] else None


def gold_beyond(method: str) -> Value:
    """Gold reward of a method, minus what the sweep of plain PPO reaches at the same KL; `None` for what has none."""

    def value(run: Results) -> float | None:
        if method in ("sft", "best-of-n", "ppo"):
            return None
        policy = run[method]["policy"]
        plain = gold_at(run, "ppo", policy["kl"])
        return None if plain is None else policy["gold"] - plain

    return value


def reading_error(name: str) -> Value:
    """Gold reward of plain PPO at one β of the sweep, minus what is read at its KL from the others."""

    def value(run: Results) -> float | None:
        policy = run[name]["ppo"]["policy"]
        read = gold_at(run, "ppo", policy["kl"], left_out=name)
        return None if read is None else policy["gold"] - read

    return value


def smoothed(values: Sequence[float], width: int = 5) -> np.ndarray:
    """Mean over the rollouts so far, the last five at most."""
    return pd.Series(values).rolling(width, min_periods=1).mean().to_numpy()


def cell(found: dict[str, float] | None, digits: int = 3) -> str:
    """Mean and half of the interval's width."""
    if found is None:
        return "–"
    return f"{found['mean']:.{digits}f} ± {(found['high'] - found['low']) / 2:.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def policy_table(runs: dict[int, Results], methods: Sequence[str]) -> str:
    """Policies of some methods, and their differences from plain PPO on the same seeds, at equal weight and KL."""
    base = methods[0] if "last token" in methods[0] else "ppo"
    rows = []
    for method in methods:
        paired = ["–", "–"]
        if method != base:
            both = [(policy_figure(method, name), policy_figure(base, name)) for name in ("win_rate", "gold")]
            paired = [cell(over_seeds(runs, difference(*figures))) for figures in both]
        paired.append(cell(over_seeds(runs, gold_beyond(method))))
        rows.append([method, *(cell(over_seeds(runs, policy_figure(method, name))) for name in FIGURES[:5]), *paired])
    header = ["method", "win rate", "gold", "right", "KL", "proxy", f"win rate − {base}", f"gold − {base}"]
    return markdown([*header, "gold − ppo's sweep at its KL"], rows)


def reward_table(runs: dict[int, Results]) -> str:
    """Reward models on pairs that the gold reward labels, and the terms of the multi-view loss."""
    rows = []
    for name in ("ppo", *METHODS, "ppo, last token"):
        accuracy = [
            cell(over_seeds(runs, lambda run, name=name, pairs=pairs: run[name]["reward_model"][pairs]["accuracy"]))
            for pairs in ("human", "policy")
        ]
        error = over_seeds(runs, lambda run, name=name: run[name]["reward_model"]["policy"]["calibration_error"])
        gains = [
            cell(over_seeds(runs, lambda run, name=name, key=key: information(run[name], key)))
            for key in ("mi", "mi_heldout")
        ]
        rows.append(["r (human pairs)" if name == "ppo" else name, *accuracy, cell(error), *gains])
    header = ["reward model", "held-out pairs of π_SFT", "pairs of π", "calibration error, pairs of π"]
    return markdown([*header, "MI − zero, training", "MI − zero, other prompts"], rows)


def information(result: Results, key: str) -> float | None:
    """How far an MI estimate lies above its zero-information value."""
    loss = result.get("loss", {})
    return loss[key] - loss["mi_zero"] if "mi" in loss else None


def accuracy_on_policy(method: str) -> Value:
    """How often a reward model is right on pairs of π."""
    return lambda run: run[method]["reward_model"]["policy"]["accuracy"]


def spg_table(runs: dict[int, Results]) -> str:
    """SPG minus everything that it differs from in one thing."""
    others = ["ppo", "human pairs only"]
    others += [
        name
        for name, method in METHODS.items()
        if method.preferences is not None and name != "spg" and method.head == "log_ratio"
    ]
    rows = []
    for other in others:
        both = [(policy_figure("spg", name), policy_figure(other, name)) for name in ("win_rate", "gold", "right")]
        both.append((accuracy_on_policy("spg"), accuracy_on_policy(other)))
        rows.append([other, *(cell(over_seeds(runs, difference(*figures))) for figures in both)])
    return markdown(["SPG minus", "win rate", "gold", "right", "reward model, pairs of π"], rows)


def synthetic_table(runs: dict[int, Results]) -> str:
    """Label accuracy of the synthetic preferences."""
    rows = []
    for name, method in METHODS.items():
        if method.preferences is None:
            continue
        figures = [
            cell(over_seeds(runs, lambda run, name=name, key=key: run[name]["synthetic"][key]), digits)
            for key, digits in (("accuracy", 3), ("right", 3), ("pairs", 0))
        ]
        rows.append([name, *figures])
    return markdown(["generator", "y_w better (gold)", "right value, where one side has it", "pairs"], rows)


def sweep_table(runs: dict[int, Results]) -> str:
    """Gold, proxy and KL at each β, with r and with SPG's r̂."""
    rows = []
    for name in sweep_of(runs):
        values = {
            (method, figure): lambda run, name=name, method=method, figure=figure: run[name][method]["policy"][figure]
            for method in ("ppo", "spg")
            for figure in ("gold", "proxy", "kl", "malformed", "win_rate")
        }
        cells = [cell(over_seeds(runs, values[key])) for key in values if key[1] != "win_rate"]
        gains = [
            cell(over_seeds(runs, difference(values["spg", figure], values["ppo", figure])))
            for figure in ("gold", "win_rate")
        ]
        rows.append([name.removeprefix("sweep "), *cells, *gains])
    header = [
        "β",
        *(f"{method}: {name}" for method in ("PPO", "SPG") for name in ("gold", "proxy", "KL", "malformed")),
    ]
    return markdown([*header, "gold, SPG − PPO", "win rate, SPG − PPO"], rows)


def equal_kl_table(runs: dict[int, Results]) -> str:
    """Gold reward at the same KL, read between the policies of the sweep, on evaluation prompts."""
    rows = []
    for kl in EQUAL_KL:
        values = [lambda run, method=method, kl=kl: gold_at(run, method, kl) for method in ("ppo", "spg")]
        reached = {seed: run for seed, run in runs.items() if None not in [value(run) for value in values]}
        if len(reached) < 2:
            continue
        cells = [cell(over_seeds(reached, value)) for value in (*values, difference(*values[::-1]))]
        rows.append([f"{kl:g}", *cells, str(len(reached))])
    return markdown(["KL, nats", "gold, PPO", "gold, SPG", "SPG − PPO", "seeds that reach it"], rows)


def reading_table(runs: dict[int, Results]) -> str:
    """How wrong it is to read gold between two β: each inner β of plain PPO, left out of its own sweep."""
    inner = sweep_of(runs)[1:]
    rows = [
        [
            name.removeprefix("sweep "),
            cell(over_seeds(runs, lambda run, name=name: run[name]["ppo"]["policy"]["kl"])),
            cell(over_seeds(runs, reading_error(name))),
        ]
        for name in inner
    ]
    return markdown(["β left out", "its KL", "gold, minus what is read from the others"], rows)
