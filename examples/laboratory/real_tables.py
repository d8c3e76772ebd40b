"""Tables of the experiment on a real language model: means with intervals over seeds."""

from collections.abc import Sequence
from typing import Any

from real_stages import GENERATORS
from tables import Value, format_interval, format_table, subtract, summarize_seeds


Runs = dict[int, dict[str, Any]]


def select_metric(*keys: str) -> Value:
    """Returns the function that reads a metric by its keys from one seed. It returns `None` for a missing key."""

    def value(run: dict[str, Any]) -> float | None:
        for key in keys:
            if key not in run:
                return None
            run = run[key]
        return run

    return value


def compare_right(first: str, second: str, part: str) -> Value:
    """Returns the function that subtracts the shares of correct answers of two policies on a part of the questions."""
    return subtract(*(select_metric(name, part, "right") for name in (first, second)))


def format_over_seeds(runs: Runs, value: Value, digits: int = 3) -> str:
    """Formats mean ± half the width of the interval, or a dash if a seed does not have the metric."""
    return format_interval(summarize_seeds(runs, value), digits)


def build_label_table(runs: Runs) -> str:
    """Builds the table of synthetic preferences against the known answers."""
    digits = {"accuracy": 3, "decided": 0, "pairs": 0}
    rows = []
    for name in GENERATORS:
        cells = [format_over_seeds(runs, select_metric("labels", name, key), places) for key, places in digits.items()]
        gain = subtract(select_metric("labels", "spg", "accuracy"), select_metric("labels", name, "accuracy"))
        rows.append([name, *cells, "–" if name == "spg" else format_over_seeds(runs, gain)])
    header = ["generator", "chosen side correct", "pairs with one correct side", "pairs", "SPG − generator"]
    return format_table(header, rows)


def build_confidence_table(runs: Runs) -> str:
    """Builds the table of the label accuracy by confidence, over all seeds together."""
    rows = []
    for name in ("spg", "select_all"):
        bins: dict[str, list[list[float]]] = {}
        for run in runs.values():
            for edge, accuracy_and_count in run["labels"][name].get("by_confidence", {}).items():
                bins.setdefault(edge, []).append(accuracy_and_count)
        for edge in sorted(bins, key=float):
            count = sum(number for _, number in bins[edge])
            accuracy = sum(share * number for share, number in bins[edge]) / count
            rows.append([name, edge, f"{accuracy:.3f}", str(count)])
    header = ["generator", "confidence, lower edge of the bin", "chosen side correct", "pairs with one correct side"]
    return format_table(header, rows)


def build_reward_table(runs: Runs, refinements: Sequence[str]) -> str:
    """Builds the table of reward models on human pairs, on policy pairs and by best-of-n."""
    counts = sorted(next(iter(runs.values()))["judged r"]["best_of_n"], key=int)
    rows = []
    for name in ("r", *refinements):
        pairs, best = (
            [select_metric(f"judged {model}", *keys) for model in (name, "r")]
            for keys in (("policy_pairs", "accuracy"), ("best_of_n", counts[-1]))
        )
        gains = [format_over_seeds(runs, subtract(*both)) for both in (pairs, best)]
        rows.append(
            [
                name,
                format_over_seeds(runs, select_metric("human", name)),
                format_over_seeds(runs, pairs[0]),
                *(format_over_seeds(runs, select_metric(f"judged {name}", "best_of_n", n)) for n in counts),
                *(["–", "–"] if name == "r" else gains),
                format_over_seeds(runs, subtract(select_metric(name, "mi"), select_metric(name, "mi_zero"))),
            ]
        )
    header = ["reward model", "human pairs without flips", "policy pairs", *(f"best of {n}" for n in counts)]
    return format_table([*header, "policy pairs − r", f"best of {counts[-1]} − r", "MI − zero"], rows)


def build_summary(runs: Runs, refinements: Sequence[str]) -> str:
    """Builds the page with all tables."""
    correct = format_over_seeds(runs, select_metric("heldout", "right"))
    asked, unreadable = (sum(run["labels"]["rlaif"][key] for run in runs.values()) for key in ("asked", "unreadable"))
    parts = [
        f"{len(runs)} seeds: {', '.join(map(str, runs))}. Each cell is the mean ± half the width of the 95% interval "
        f"over seeds (Student's t). A share of {correct} of π_SFT's completions of held-out questions is correct.",
        f"{build_label_table(runs)}\n\nFor {unreadable} of the {asked} questions to the judge of RLAIF, the likeliest "
        "answer was neither A nor B.",
        build_confidence_table(runs),
        build_reward_table(runs, refinements),
    ]
    return "\n\n".join(parts)
