"""
Compares win rates with AlpacaEval's published leaderboards: `python tests/alpaca_eval_published.py CHECKOUT`.

CHECKOUT is one of https://github.com/tatsu-lab/alpaca_eval, of which only `results/*/*/annotations.json` and
`src/alpaca_eval/leaderboards` are read. With `--anchors df_gamed.csv` (of the Hub's data set `tatsu-lab/alpaca_eval`)
length-controlled win rates are compared too.
"""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

from trl_rlp.evaluation.alpaca_eval import leaderboard_row, preferences_of, read_annotations
from trl_rlp.evaluation.length_control import Anchors, length_controlled_win_rate, load_anchors


LEADERBOARDS = {
    "weighted_alpaca_eval_gpt4_turbo": "data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
    "alpaca_eval_gpt4": "data_AlpacaEval/alpaca_eval_gpt4_leaderboard.csv",
}
FIGURES = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
ROUNDING = 1e-6  # the files hold ten decimals


def published(checkout: Path, annotator: str) -> dict[str, dict[str, str]]:
    """The leaderboard's rows by model."""
    with open(checkout / "src/alpaca_eval/leaderboards" / LEADERBOARDS[annotator], newline="") as file:
        rows = list(csv.reader(file))
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def compared(checkout: Path, annotator: str, anchors: Anchors | None) -> tuple[Counter, list[float]]:
    """How many figures are the leaderboard's, and how far length-controlled win rates are from it, in percent."""
    rows, equal, distances = published(checkout, annotator), Counter(), []
    for path in sorted(checkout.glob(f"results/*/{annotator}/annotations.json")):
        expected = rows.get(path.parts[-3])
        if expected is None:
            continue
        annotations = read_annotations(path)
        found = leaderboard_row(annotations)
        equal["files"] += 1
        for name in FIGURES:
            if expected.get(name):
                equal[name] += abs(found[name] - float(expected[name])) < ROUNDING
                equal[f"{name} of"] += 1
        if anchors is not None and expected.get("length_controlled_winrate"):
            lengths = ([len(row[name]) for row in annotations] for name in ("output_2", "output_1"))
            controlled = length_controlled_win_rate(
                preferences_of(annotations), *lengths, anchors=anchors, resamples=2
            )
            theirs = float(expected["length_controlled_winrate"])
            distances.append(abs(100 * controlled["length_controlled_win_rate"] - theirs))
    return equal, distances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--anchors", type=Path)
    arguments = parser.parse_args()
    anchors = load_anchors(arguments.anchors) if arguments.anchors else None
    for annotator in LEADERBOARDS:
        equal, distances = compared(arguments.checkout, annotator, anchors)
        lines = [f"{annotator}: {equal['files']} files"]
        lines += [f"  {name}: {equal[name]} of {equal[f'{name} of']} equal" for name in FIGURES]
        if distances:
            near = [sum(distance < within for distance in distances) for within in (0.005, 0.2)]
            lines.append(
                f"  length-controlled, {len(distances)} files: {near[0]} within .005 percentage points, {near[1]} "
                f"within .2, at most {max(distances):.3f} apart"
            )
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
