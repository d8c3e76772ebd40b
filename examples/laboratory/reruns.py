"""
How much win rates change if the same seeds run again, for example on another machine.

    python examples/laboratory/reruns.py docs/laboratory/ours/policies.csv docs/laboratory/ours/policies_intel.csv
"""

import argparse

import pandas as pd
from tables import format_table


BASELINE = "sweep 0.2 spg"
"""Method that all others are compared with: SPG at its best β."""


def compare_runs(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Joins the rows of both reports by seed and method, and adds each win rate minus that of SPG."""
    both = first.merge(second, on=["seed", "method"], suffixes=("_first", "_second"))
    for side in ("first", "second"):
        baseline = both[both.method == BASELINE].set_index("seed")[f"win_rate_{side}"]
        both[f"gain_{side}"] = both[f"win_rate_{side}"] - both.seed.map(baseline)
    return both


def summarize_changes(first: pd.DataFrame, both: pd.DataFrame) -> str:
    """Sums up the changes, and compares them with the deviation between the seeds of the first report."""
    changes = both.win_rate_second - both.win_rate_first
    between_seeds = first.groupby("method").win_rate.var().mean() ** 0.5
    return (
        f"Win rates of {len(both)} rows change by {changes.mean():+.3f} on average, with a standard deviation of "
        f"{changes.std():.3f}. Between the {first.seed.nunique()} seeds of a method it is {between_seeds:.3f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=pd.read_csv, help="`policies.csv` of a report")
    parser.add_argument("second", type=pd.read_csv, help="`policies.csv` of the same seeds, run again")
    arguments = parser.parse_args()
    both = compare_runs(arguments.first, arguments.second)
    if both.empty:
        parser.error("The files have no seed and method in common.")
    header = ["seed", "method", "win rate, first", "second", f"− {BASELINE}, first", "second"]
    rows = [
        [str(row.seed), row.method, f"{row.win_rate_first:.3f}", f"{row.win_rate_second:.3f}"]
        + [f"{row.gain_first:+.3f}", f"{row.gain_second:+.3f}"]
        for row in both.itertuples()
    ]
    print(f"{summarize_changes(arguments.first, both)}\n\n{format_table(header, rows)}")


if __name__ == "__main__":
    main()
