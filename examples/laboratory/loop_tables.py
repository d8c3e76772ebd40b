"""The table of the policies of one seed, and the table of refinements in the loop."""

from typing import Any

import pandas as pd
from methods import LOOP_METHODS, list_loop_results
from tables import Results, format_table, list_policies


COLUMNS = {
    "win_rate": "win rate",
    "gold": "gold",
    "right": "correct",
    "malformed": "malformed",
    "kl": "KL, nats",
    "characters": "characters",
}
"""Metrics of the tables, and the names of their columns."""


def list_refinements(runs: dict[int, Results]) -> list[dict[str, Any]]:
    """Lists all refinements in the loop, with the rollout whose completions were the first to get the new reward."""
    rows = []
    names = [result for method in LOOP_METHODS for result in list_loop_results(method)]
    for seed, run in runs.items():
        for method in [name for name in names if name in run]:
            for rollout, point in enumerate(run[method].get("curve", []), start=1):
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
        [row["method"], str(row["rollout"]), *("–" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in names)]
        for _, row in means.iterrows()
    ]
    return format_table(["method", "rollout", *(name.removeprefix("refinement/") for name in names)], cells)


def build_seed_table(results: Results) -> str:
    """Builds the table of the policies of one seed."""
    rows = []
    for method, result in list_policies(results).items():
        values = [result["policy"].get(metric) for metric in COLUMNS]
        rows.append([method, *("–" if value is None else f"{value:.3f}" for value in values)])
    return format_table(["method", *COLUMNS.values()], rows)
