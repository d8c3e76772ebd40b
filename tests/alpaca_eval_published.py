"""
Compares win rates with AlpacaEval's published leaderboards: `python tests/alpaca_eval_published.py CHECKOUT`.

CHECKOUT is a checkout of https://github.com/tatsu-lab/alpaca_eval. The script only reads its
`results/*/*/annotations.json` and `src/alpaca_eval/leaderboards`. With `--anchors df_gamed.csv` (from the dataset
`tatsu-lab/alpaca_eval` on the Hub) it also compares length-controlled win rates.
"""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

from trl_rlp.evaluation.alpaca_eval import get_preferences, leaderboard_row, read_annotations
from trl_rlp.evaluation.length_control import Anchors, length_controlled_win_rate, load_anchors


LEADERBOARDS = {
    "weighted_alpaca_eval_gpt4_turbo": "data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
    "alpaca_eval_gpt4": "data_AlpacaEval/alpaca_eval_gpt4_leaderboard.csv",
}
METRICS = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
ROUNDING = 1e-6  # the files have ten decimals


def load_leaderboard(checkout: Path, annotator: str) -> dict[str, dict[str, str]]:
    """Loads the rows of a leaderboard by model."""
    with open(checkout / "src/alpaca_eval/leaderboards" / LEADERBOARDS[annotator], newline="") as file:
        rows = list(csv.reader(file))
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def compare_with_leaderboard(checkout: Path, annotator: str, anchors: Anchors | None) -> tuple[Counter, list[float]]:
    """Counts equal metrics, and returns the differences of the length-controlled win rates in percentage points."""
    leaderboard, counts, differences = load_leaderboard(checkout, annotator), Counter(), []
    for path in sorted(checkout.glob(f"results/*/{annotator}/annotations.json")):
        expected = leaderboard.get(path.parts[-3])
        if expected is None:
            continue
        annotations = read_annotations(path)
        row = leaderboard_row(annotations)
        counts["files"] += 1
        for name in METRICS:
            if expected.get(name):
                counts[name] += abs(row[name] - float(expected[name])) < ROUNDING
                counts[f"{name} of"] += 1
        if anchors is not None and expected.get("length_controlled_winrate"):
            lengths = ([len(row[name]) for row in annotations] for name in ("output_2", "output_1"))
            result = length_controlled_win_rate(get_preferences(annotations), *lengths, anchors=anchors, resamples=2)
            published = float(expected["length_controlled_winrate"])
            differences.append(abs(100 * result["length_controlled_win_rate"] - published))
    return counts, differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--anchors", type=Path)
    arguments = parser.parse_args()
    anchors = load_anchors(arguments.anchors) if arguments.anchors else None
    for annotator in LEADERBOARDS:
        counts, differences = compare_with_leaderboard(arguments.checkout, annotator, anchors)
        lines = [f"{annotator}: {counts['files']} files"]
        lines += [f"  {name}: {counts[name]} of {counts[f'{name} of']} equal" for name in METRICS]
        if differences:
            small, large = (sum(difference < limit for difference in differences) for limit in (0.005, 0.2))
            lines.append(
                f"  length-controlled, {len(differences)} files: {small} within .005 percentage points, {large} "
                f"within .2, largest difference {max(differences):.3f}"
            )
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
