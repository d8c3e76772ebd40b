"""
What is claimed of policies of a real model, tested on the seeds of a report.

The ceiling is no claim. Its certain rows would make the correction of the others milder.
"""

from typing import Any

from claims import Step, format_claims
from ours_claims import VERDICTS
from real_methods import PICK_METHODS, name_result
from real_seed_table import PARTS
from real_tables import Runs, compare_right, select_metric
from tables import Value, subtract


OURS = ("anchor_reward", "refined_in_loop", "anchored")
COMPARED = {"ppo": ("spg", *OURS), "spg": OURS}
"""Methods that are claimed to give more correct answers than another one at the same β."""

TRAINED_ON_R = ("ppo", "grpo")
"""Methods that train a policy against a fixed r."""


def build_claims_table(runs: Runs, results: list[tuple[str, float | None]], has_one_kl_coef: bool = False) -> str:
    """
    Builds the table of claims.

    Args:
        runs (`dict[int, dict]`):
            The metrics of each seed.
        results (`list[tuple[str, float]]`):
            The policies that all seeds have, as pairs of name and β.
        has_one_kl_coef (`bool`, *optional*, defaults to `False`):
            Whether the settings have only one β, as those of the longer training. It then says whether policies
            over-optimize r compared with π_SFT. It samples the same completions of π_SFT as the shorter one, so claims
            on selection would be the same evidence twice.
    """
    steps = _build_taught_steps(results) + _build_comparison_steps(results)
    steps += _build_single_steps(results) if has_one_kl_coef else _build_sweep_steps(results)
    return format_claims(runs, steps, VERDICTS, marks_uncorrected=True)


def list_kl_coefs(results: list[tuple[str, float | None]], *names: str) -> list[float]:
    """Lists the values of β that all these methods have, from the smallest."""
    shared = set.intersection(*({kl_coef for other, kl_coef in results if other == name} for name in names))
    return sorted(kl_coef for kl_coef in shared if kl_coef is not None)


def average(values: list[Value]) -> Value:
    """Returns the function that averages values of one seed. It returns `None` if one of them is missing."""

    def compute(run: dict[str, Any]) -> float | None:
        numbers = [value(run) for value in values]
        return None if None in numbers else sum(numbers) / len(numbers)

    return compute


def _build_taught_steps(results: list[tuple[str, float | None]]) -> list[Step]:
    """Builds the rows of the policies that are taught by picks, which should be better than π_SFT."""
    return [
        (
            f"above π_SFT, {text}",
            f"{name} − π_SFT",
            compare_right(name, "pi_sft", part),
        )
        for name in PICK_METHODS
        for part, text in PARTS.items()
        if (name, None) in results
    ]


def _build_comparison_steps(results: list[tuple[str, float | None]]) -> list[Step]:
    """Builds the rows that compare two methods at the same β. Each is the mean over the values of β that both have."""
    steps = []
    for other, names in COMPARED.items():
        for name in names:
            kl_coefs = list_kl_coefs(results, name, other)
            for part, text in PARTS.items() if kl_coefs else ():
                values = [
                    compare_right(name_result(name, kl_coef), name_result(other, kl_coef), part)
                    for kl_coef in kl_coefs
                ]
                listed = ", ".join(f"{kl_coef:g}" for kl_coef in kl_coefs)
                steps.append(
                    (f"above {other} at the same β, {text}", f"{name} − {other}, β {listed}", average(values))
                )
    return steps


def _build_sweep_steps(results: list[tuple[str, float | None]]) -> list[Step]:
    """
    Builds the rows on over-optimization and on selection.

    A fixed r is over-optimized if fewer answers are correct with the smallest β of PPO than with the largest.
    """
    kl_coefs = list_kl_coefs(results, "ppo")
    if len(kl_coefs) < 2:
        return _build_selection_steps()
    high, low = (name_result("ppo", kl_coef) for kl_coef in (kl_coefs[-1], kl_coefs[0]))
    return [
        *(
            (f"over-optimization of a fixed r, {text}", f"{high} − {low}", compare_right(high, low, part))
            for part, text in PARTS.items()
        ),
        *_build_selection_steps(),
    ]


def _build_single_steps(results: list[tuple[str, float | None]]) -> list[Step]:
    """Builds the rows on over-optimization: fewer answers than π_SFT's are correct, although r is higher."""
    steps: list[Step] = []
    for name in TRAINED_ON_R:
        for policy in [name_result(name, kl_coef) for kl_coef in list_kl_coefs(results, name)]:
            for part, text in PARTS.items():
                loss = compare_right("pi_sft", policy, part)
                steps.append((f"over-optimization of a fixed r, {text}", f"π_SFT − {policy}", loss))
            rise = subtract(*(select_metric(each, "trained", "proxy") for each in (policy, "pi_sft")))
            steps.append(("… while r rises", f"r of {policy} − r of π_SFT", rise))
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
