"""All tables and figures of a folder of runs."""

import json
from pathlib import Path

from claims import claims_table
from figures import write_csvs, write_curves
from tables import (
    TABLES,
    equal_kl_table,
    load_runs,
    policy_table,
    reading_table,
    reward_table,
    spg_table,
    sweep_table,
    synthetic_table,
)


def write_report(folder: Path, target: Path) -> None:
    """Writes `tables.md`, what it was made of (`policies.csv`, `reward_models.csv`, `labels.csv`), and the curves."""
    runs, unfinished = load_runs(folder)
    kl_coef = json.loads((folder / "settings.json").read_text())["kl_coef"]
    target.mkdir(parents=True, exist_ok=True)
    seeds = ", ".join(map(str, runs))
    missing = f" Not finished and left out: {', '.join(map(str, unfinished))}." if unfinished else ""
    sections = [f"{len(runs)} seeds: {seeds}.{missing} Means ± half of the 95 % interval over seeds (Student's t)."]
    sections += [f"## Claims\n\n{claims_table(runs, kl_coef)}"]
    sections += [f"## Policies: {name}\n\n{policy_table(runs, methods)}" for name, methods in TABLES.items()]
    sections += [
        f"## SPG and what it is compared with\n\n{spg_table(runs)}",
        f"## Synthetic preferences\n\n{synthetic_table(runs)}",
        f"## Reward models\n\n{reward_table(runs)}",
        f"## KL weights\n\n{sweep_table(runs)}",
        f"## At equal KL\n\n{equal_kl_table(runs)}",
        f"## What reading between two β is worth\n\n{reading_table(runs)}",
    ]
    (target / "tables.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    write_csvs(runs, target)
    write_curves(runs, target)
    print(f"Tables and figures: {target}")
