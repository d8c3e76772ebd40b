"""The report of a folder of runs: all tables and figures."""

import json
from pathlib import Path

from claims import build_claims_table
from figures import write_csvs, write_curves
from loop_tables import build_loop_table, build_refinement_table
from tables import (
    TABLES,
    build_equal_kl_table,
    build_interpolation_table,
    build_policy_table,
    build_reward_table,
    build_spg_table,
    build_sweep_table,
    build_synthetic_table,
    load_runs,
)


def write_report(folder: Path, target: Path) -> None:
    """Writes `tables.md`, the training curves, and the data of both as CSV files."""
    runs, unfinished = load_runs(folder)
    settings = json.loads((folder / "settings.json").read_text())
    kl_coef, loop_kl_coef = settings["kl_coef"], settings["loop_kl_coef"]
    target.mkdir(parents=True, exist_ok=True)
    seeds = ", ".join(map(str, runs))
    missing = f" Unfinished seeds, not included: {', '.join(map(str, unfinished))}." if unfinished else ""
    sections = [
        f"{len(runs)} seeds: {seeds}.{missing} Each cell is the mean ± half the width of the 95% interval over seeds "
        "(Student's t)."
    ]
    sections += [f"## Claims\n\n{build_claims_table(runs, kl_coef)}"]
    sections += [f"## Policies: {name}\n\n{build_policy_table(runs, methods)}" for name, methods in TABLES.items()]
    sections += [
        f"## In the loop\n\n{build_loop_table(runs, kl_coef, loop_kl_coef)}",
        f"## Refinements in the loop\n\n{build_refinement_table(runs)}",
        f"## SPG compared with other methods\n\n{build_spg_table(runs)}",
        f"## Synthetic preferences\n\n{build_synthetic_table(runs)}",
        f"## Reward models\n\n{build_reward_table(runs)}",
        f"## KL weights\n\n{build_sweep_table(runs)}",
        f"## At equal KL\n\n{build_equal_kl_table(runs)}",
        f"## Error of interpolating between two β\n\n{build_interpolation_table(runs)}",
    ]
    (target / "tables.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    write_csvs(runs, target)
    write_curves(runs, target)
    print(f"Tables and figures: {target}")
