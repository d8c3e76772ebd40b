"""The report of a folder of runs: all tables and figures of a part of the laboratory."""

from pathlib import Path

from claims import build_claims_table
from figures import write_beta_figure, write_csvs, write_curves, write_kl_figure
from loop_tables import build_refinement_table, list_refinements
from ours_claims import build_best_table, build_goal_table
from ours_claims import build_claims_table as build_our_claims_table
from ours_tables import (
    INTERPOLATED,
    build_control_table,
    build_fixed_kl_table,
    build_malformed_table,
    build_own_kl_table,
    build_policy_tables,
    build_quality_table,
)
from provenance import PartRuns, load_parts
from tables import (
    TABLES,
    build_equal_kl_table,
    build_interpolation_table,
    build_policy_table,
    build_reward_table,
    build_spg_table,
    build_sweep_table,
    build_synthetic_table,
)


BEST_NOTE = (
    "The best β is chosen on the seeds of this report, for ours and for SPG. How much this favors a row depends on "
    "its number of β values and on their spread. The columns 'β chosen on the other seeds' are free of it: on each "
    "seed, both methods have the β that is best on all other seeds. p is corrected for all differences of the table."
)
CLAIMS_NOTE = (
    "The verdict follows from the interval of its row. 'Before correction only' means that the p that is corrected "
    "for all rows does not support it at .05."
)
GOAL_NOTE = (
    "Win rate and gold are those of each method at the β with its best mean win rate. They are compared with SPG at "
    "the β with its best mean win rate, and with SPG's sweep. p is two-sided, and corrected for the rows of the "
    "table. Malformed is the mean over seeds. Rows by GRPO differ from SPG in their trainer too. The tables of the "
    "best β also compare them with SPG by GRPO. The β of `majority_dpo` is that of DPO, and not a KL weight."
)
KL_NOTE = (
    "Between two β values, the sweep is a line. A difference means nothing if it is not clearly larger than the error "
    "of this line, which a table below shows for SPG. Where SPG's next larger KL is far away, it can be far off. "
    "Below the smallest KL of a method, the line starts at π_SFT, and is mostly too low."
)


def write_report(folder: Path, target: Path, part: str | None = None) -> None:
    """
    Writes `tables.md`, the figures, and the data of both as CSV files.

    The pages of the paper's methods go to `target`, those of ours to `target/ours`. Without `part`, each part is
    reported that has two finished seeds.
    """
    for loaded in load_parts(folder, part):  # all parts are checked before any is written
        page, sections, figures = (
            (target, list_paper_sections, [write_curves])
            if loaded.part == "paper"
            else (target / loaded.part, list_our_sections, [write_kl_figure, write_beta_figure])
        )
        page.mkdir(parents=True, exist_ok=True)
        text = [loaded.describe(), *(f"## {title}\n\n{section}" for title, section in sections(loaded).items())]
        (page / "tables.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
        write_csvs(loaded.runs, page)
        for write_figure in figures:
            write_figure(loaded.runs, page)
        print(f"Tables and figures: {page}")


def list_paper_sections(loaded: PartRuns) -> dict[str, str]:
    """Builds the sections on the paper's methods, by title."""
    runs = loaded.runs
    return {
        "Claims": build_claims_table(runs, loaded.settings.kl_coef),
        **{f"Policies: {name}": build_policy_table(runs, methods) for name, methods in TABLES.items()},
        "SPG compared with other methods": build_spg_table(runs),
        "Synthetic preferences": build_synthetic_table(runs),
        "Reward models": build_reward_table(runs),
        "KL weights": build_sweep_table(runs),
        "At equal KL": build_equal_kl_table(runs),
        "Error of interpolating between two β": build_interpolation_table(runs),
    }


def list_our_sections(loaded: PartRuns) -> dict[str, str]:
    """Builds the sections on our methods, by title."""
    runs = loaded.runs
    sections = {
        "The goal": f"{build_goal_table(runs)}\n\n{GOAL_NOTE}",
        "Claims": f"{build_our_claims_table(runs)}\n\n{CLAIMS_NOTE}",
        **{f"Policies: {name}": table for name, table in build_policy_tables(runs).items()},
    }
    for metric, name in (("win_rate", "win rate"), ("gold", "gold")):
        sections[f"Each method at its best β by {name}, minus SPG"] = (
            f"{build_best_table(runs, metric)}\n\n{BEST_NOTE}"
        )
    sections |= {
        "At the KL of each policy": f"{build_own_kl_table(runs)}\n\n{KL_NOTE}",
        **{
            f"At fixed KL: {name}": f"{build_fixed_kl_table(runs, metric)}\n\n{KL_NOTE}"
            for metric, name in INTERPOLATED.items()
        },
        "Error of interpolating SPG between two β": build_interpolation_table(runs, "spg"),
        "Malformed completions": build_malformed_table(runs),
        "Methods that differ in one thing": build_control_table(runs),
        "Pairs, anchors and picks": build_quality_table(runs),
    }
    return sections | ({"Refinements in the loop": build_refinement_table(runs)} if list_refinements(runs) else {})
