"""What is claimed of policies of a real model, tested on the seeds of a report."""

from typing import Any

from claims import VERDICTS, Step, format_claims
from real_methods import PICK_METHODS, name_result
from real_seed_table import PARTS
from real_tables import Runs, select_metric
from tables import Value, subtract


OURS = ("anchor_reward", "refined_in_loop", "anchored")
COMPARED = {"ppo": ("spg", *OURS), "spg": OURS}
"""Methods that are claimed to give more correct answers than another one at the same β."""


def build_claims_table(runs: Runs, results: list[tuple[str, float | None]]) -> str:
    """Builds the table of claims. `results` lists the policies that all seeds have, as pairs of name and β."""
    steps = [
        *_build_reference_steps(results),
        *_build_comparison_steps(results),
        *_build_over_optimization_steps(results),
    ]
    return format_claims(runs, steps + _build_selection_steps(), VERDICTS, marks_uncorrected=True)


def list_kl_coefs(results: list[tuple[str, float | None]], *names: str) -> list[float]:
    """Lists the values of β that all these methods have, from the smallest."""
    shared = set.intersection(*({kl_coef for other, kl_coef in results if other == name} for name in names))
    return sorted(kl_coef for kl_coef in shared if kl_coef is not None)


def average(values: list[Value]) -> Value:
    """Returns the function that averages values of one seed."""

    def value(run: dict[str, Any]) -> float:
        return sum(value(run) for value in values) / len(values)

    return value


def _build_reference_steps(results: list[tuple[str, float | None]]) -> list[Step]:
    """Builds the rows of policies that should be better than π_SFT: the ceiling, and those taught by picks."""
    names = [name_result("known_answers", kl_coef) for kl_coef in list_kl_coefs(results, "known_answers")]
    names += [name for name in PICK_METHODS if (name, None) in results]
    return [
        (
            f"above π_SFT, {text}",
            f"{name} − π_SFT",
            subtract(*(select_metric(side, part, "right") for side in (name, "pi_sft"))),
        )
        for name in names
        for part, text in PARTS.items()
    ]


def _build_comparison_steps(results: list[tuple[str, float | None]]) -> list[Step]:
    """Builds the rows that compare two methods at the same β. Each is the mean over the values of β that both have."""
    steps = []
    for other, names in COMPARED.items():
        for name in names:
            kl_coefs = list_kl_coefs(results, name, other)
            for part, text in PARTS.items() if kl_coefs else ():
                sides = [[name_result(side, kl_coef) for side in (name, other)] for kl_coef in kl_coefs]
                values = [subtract(*(select_metric(side, part, "right") for side in pair)) for pair in sides]
                listed = ", ".join(f"{kl_coef:g}" for kl_coef in kl_coefs)
                steps.append(
                    (f"above {other} at the same β, {text}", f"{name} − {other}, β {listed}", average(values))
                )
    return steps


def _build_over_optimization_steps(results: list[tuple[str, float | None]]) -> list[Step]:
    """Builds the rows on over-optimization of a fixed r: with the smallest β, r rises and correct answers fall."""
    kl_coefs, steps = list_kl_coefs(results, "ppo"), []
    if len(kl_coefs) < 2:
        return []
    low, high = (name_result("ppo", kl_coef) for kl_coef in (kl_coefs[0], kl_coefs[-1]))
    for text, metric, first, second in (
        ("r", ("trained", "proxy"), low, high),
        *((f"correct, {text}", (part, "right"), high, low) for part, text in PARTS.items()),
    ):
        value = subtract(*(select_metric(side, *metric) for side in (first, second)))
        steps.append(("over-optimization of a fixed r", f"{text}: {first} − {second}", value))
    return steps


def _build_selection_steps() -> list[Step]:
    """Builds the rows on best-of-n: by r within the majority, compared with r alone and with one sample."""
    return [
        (
            f"majority, then reward, {text}",
            label,
            subtract(*(select_metric("picks", f"{part}, r", name) for name in ("majority", other))),
        )
        for other, label in (("best", "majority − best-of-n"), ("single", "majority − one sample"))
        for part, text in PARTS.items()
    ]
