"""Tables of the methods in the loop, and the table of one seed."""

from functools import partial
from typing import Any

import pandas as pd
from methods import LOOP_METHODS
from tables import Results, compare_with_sweep, format_interval, format_table, subtract, summarize_seeds


COLUMNS = {
    "win_rate": "win rate",
    "gold": "gold",
    "right": "correct",
    "malformed": "malformed",
    "kl": "KL, nats",
    "characters": "characters",
}
"""Metrics of the tables, and the names of their columns."""


def read_metric(run: Results, metric: str, method: str, sweep: str | None = None) -> float | None:
    """Reads a metric of a method's policy from one seed, or of its policy in an entry of the sweep."""
    results = run if sweep is None else run[sweep]
    return results[method]["policy"].get(metric)


def build_loop_table(runs: dict[int, Results], kl_coef: float, loop_kl_coef: float) -> str:
    """
    Builds the table of the methods in the loop, after PPO and SPG at the default β and at the β of the loop.

    The differences are from SPG at the default β, and from the sweep of SPG at the same KL.
    """
    policies = [(method, f"sweep {beta}", beta) for beta in (kl_coef, loop_kl_coef) for method in ("ppo", "spg")]
    policies += [(method, None, loop_kl_coef) for method in LOOP_METHODS]
    rows = []
    for method, sweep, beta in policies:
        values = {metric: partial(read_metric, metric=metric, method=method, sweep=sweep) for metric in COLUMNS}
        gains = [None, None]
        if method in LOOP_METHODS:
            base = partial(read_metric, metric="win_rate", method="spg", sweep=f"sweep {kl_coef}")
            gains = [subtract(values["win_rate"], base), compare_with_sweep(method, "spg")]
        cells = [value and format_interval(summarize_seeds(runs, value)) for value in (*values.values(), *gains)]
        rows.append([f"{method}, β {beta}", *(cell or "–" for cell in cells)])
    header = ["method", *COLUMNS.values(), f"win rate − spg, β {kl_coef}", "gold − spg's sweep at the same KL"]
    return format_table(header, rows)


def list_refinements(runs: dict[int, Results]) -> list[dict[str, Any]]:
    """Lists all refinements in the loop, with the rollout whose completions were the first to get the new reward."""
    rows = []
    for seed, run in runs.items():
        for method in [name for name in LOOP_METHODS if name in run]:
            for rollout, point in enumerate(run[method]["curve"], start=1):
                metrics = {name: value for name, value in point.items() if name.startswith("refinement/")}
                if metrics:
                    rows.append({"seed": seed, "method": method, "rollout": rollout, **metrics})
    return rows


def build_refinement_table(runs: dict[int, Results]) -> str:
    """Builds the table of the refinements in the loop: their mean over seeds at each rollout."""
    refinements = pd.DataFrame(list_refinements(runs))
    names = [name for name in refinements if name.startswith("refinement/")]
    means = refinements.groupby(["method", "rollout"], sort=False)[names].mean().reset_index()
    cells = [
        [row["method"], str(row["rollout"]), *(f"{row[name]:.3f}" for name in names)] for _, row in means.iterrows()
    ]
    return format_table(["method", "rollout", *(name.removeprefix("refinement/") for name in names)], cells)


def build_seed_table(results: Results) -> str:
    """Builds the table of the policies of one seed."""
    rows = []
    for name, result in results.items():
        policies = {name: result} if "policy" in result else {f"{name} {key}": part for key, part in result.items()}
        for method, part in policies.items():
            values = [part["policy"].get(metric) for metric in COLUMNS]
            rows.append([method, *("–" if value is None else f"{value:.3f}" for value in values)])
    return format_table(["method", *COLUMNS.values()], rows)
