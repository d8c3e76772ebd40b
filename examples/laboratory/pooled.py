"""
Paired differences between methods over the seeds of one or more reports.

    python examples/laboratory/pooled.py docs/laboratory/policies.csv docs/laboratory/policies_seeds_0-9.csv
"""

import argparse

import pandas as pd
from tables import format_interval, format_table

from trl_rlp.evaluation import seed_interval


METRICS = ("win_rate", "gold", "right")


def compute_differences(rows: pd.DataFrame, first: str, second: str) -> list[str]:
    """Computes first minus second for each metric, on the seeds that have both methods."""
    cells = []
    for metric in METRICS:
        table = rows.pivot(index="seed", columns="method", values=metric)
        values = (table[first] - table[second]).dropna().tolist()
        cells.append(format_interval(seed_interval(values)) if len(values) > 1 else "–")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", help="`policies.csv` of one or more reports, each on its own seeds")
    rows = pd.concat([pd.read_csv(path) for path in parser.parse_args().policies])
    if rows.duplicated(["seed", "method"]).any():
        parser.error("The files contain the same seed more than once.")
    shared = [name for name, count in rows.groupby("method").seed.nunique().items() if count == rows.seed.nunique()]
    pairs = [(name, "ppo, last token" if "last token" in name else "ppo") for name in shared]
    pairs += [(name, "sft") for name in shared]
    pairs += [(base, name) for base in ("spg", "uml") for name in shared] + [
        ("ppo", "best-of-n"),
        ("best-of-n", "sft"),
    ]
    table = [
        [f"{first} − {second}", *compute_differences(rows, first, second)]
        for first, second in pairs
        if first != second
    ]
    print(f"{rows.seed.nunique()} seeds\n\n" + format_table(["difference", *METRICS], table))


if __name__ == "__main__":
    main()
