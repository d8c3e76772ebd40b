"""Tables of the real language model, means with intervals over seeds."""

from collections.abc import Sequence
from typing import Any

from real_stages import GENERATORS
from tables import Value, cell, difference, markdown

from trl_rlp import seed_interval


Runs = dict[int, dict[str, Any]]


def at(*keys: str) -> Value:
    """A figure of a run by where it stands; `None` if it is not there."""

    def value(run: dict[str, Any]) -> float | None:
        for key in keys:
            if key not in run:
                return None
            run = run[key]
        return run

    return value


def over(runs: Runs, value: Value, digits: int = 3) -> str:
    """Mean and half of the interval's width, or a dash where a seed has no such figure."""
    values = [value(run) for run in runs.values()]
    return "–" if None in values else cell(seed_interval(values), digits)


def label_table(runs: Runs) -> str:
    """Synthetic preferences against the known answers."""
    digits = {"accuracy": 3, "decided": 0, "pairs": 0}
    rows = []
    for name in GENERATORS:
        figures = [over(runs, at("labels", name, key), places) for key, places in digits.items()]
        gain = difference(at("labels", "spg", "accuracy"), at("labels", name, "accuracy"))
        rows.append([name, *figures, "–" if name == "spg" else over(runs, gain)])
    return markdown(["generator", "chosen side right", "pairs of which one side is right", "pairs", "SPG − it"], rows)


def confidence_table(runs: Runs) -> str:
    """The same by confidence, all seeds together."""
    rows = []
    for name in ("spg", "select_all"):
        bins: dict[str, list[list[float]]] = {}
        for run in runs.values():
            for edge, found in run["labels"][name].get("by_confidence", {}).items():
                bins.setdefault(edge, []).append(found)
        for edge in sorted(bins, key=float):
            count = sum(number for _, number in bins[edge])
            accuracy = sum(share * number for share, number in bins[edge]) / count
            rows.append([name, f"from {edge}", f"{accuracy:.3f}", str(count)])
    return markdown(["generator", "confidence", "chosen side right", "pairs of which one side is right"], rows)


def reward_table(runs: Runs, refinements: Sequence[str]) -> str:
    """Reward models on human pairs, on pairs of outputs, and as what best-of-n picks by."""
    counts = sorted(next(iter(runs.values()))["judged r"]["best_of_n"], key=int)
    rows = []
    for name in ("r", *refinements):
        pairs, best = (
            [at(f"judged {one}", *keys) for one in (name, "r")]
            for keys in (("policy_pairs", "accuracy"), ("best_of_n", counts[-1]))
        )
        gains = [over(runs, difference(*both)) for both in (pairs, best)]
        rows.append(
            [
                name,
                over(runs, at("human", name)),
                over(runs, pairs[0]),
                *(over(runs, at(f"judged {name}", "best_of_n", n)) for n in counts),
                *(["–", "–"] if name == "r" else gains),
                over(runs, difference(at(name, "mi"), at(name, "mi_zero"))),
            ]
        )
    header = ["reward model", "human pairs, no flips", "policy pairs", *(f"best of {n}" for n in counts)]
    return markdown([*header, "policy pairs − r", f"best of {counts[-1]} − r", "MI − zero"], rows)


def summary(runs: Runs, refinements: Sequence[str]) -> str:
    """All tables."""
    right = over(runs, at("heldout", "right"))
    asked, unreadable = (sum(run["labels"]["rlaif"][key] for run in runs.values()) for key in ("asked", "unreadable"))
    parts = [
        f"{len(runs)} seeds: {', '.join(map(str, runs))}. Means ± half of the 95 % interval over seeds (Student's t). "
        f"π_SFT is right in {right} of its outputs to held-out questions.",
        f"{label_table(runs)}\n\nOf RLAIF's judge {unreadable} of {asked} answers would have named neither A nor B.",
        confidence_table(runs),
        reward_table(runs, refinements),
    ]
    return "\n\n".join(parts)
