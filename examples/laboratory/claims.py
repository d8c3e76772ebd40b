"""The paper's claims, tested on the seeds of a report."""

import scipy.stats
from tables import Results, Value, collect_values, format_table, list_sweep, select_policy_metric, subtract

from trl_rlp.evaluation import seed_interval


Step = tuple[str, str, Value]
"""A claim, the name of its difference, and the function that computes the difference on one seed."""

CLAIMS: dict[str, list[tuple[str, str, str]]] = {
    "SPG > UML > PPO > best-of-n > SFT (win rate)": [
        ("spg", "uml", "win_rate"),
        ("uml", "ppo", "win_rate"),
        ("ppo", "best-of-n", "win_rate"),
        ("best-of-n", "sft", "win_rate"),
    ],
    "SPG > reward > select-all > RLAIF (label accuracy)": [
        ("spg", "reward", "label"),
        ("reward", "select_all", "label"),
        ("select_all", "rlaif", "label"),
    ],
    "MIB above CL, MVI and InfoMax (win rate)": [
        ("uml", "cl", "win_rate"),
        ("uml", "mvi", "win_rate"),
        ("uml", "infomax", "win_rate"),
    ],
}


def select_claim_metric(method: str, name: str) -> Value:
    """Returns the function that reads the metric of a claim from one seed."""
    if name == "label":
        return lambda run: run[method]["synthetic"]["accuracy"]
    return select_policy_metric(method, name)


LEVEL = 0.05
"""Level that the corrected p of a verdict on our methods is below."""

VERDICTS = ("replicated", "reversed", "not replicated")
"""Verdicts on a claim of the paper: its difference is above 0, below 0, or neither."""


def decide(interval: dict[str, float], verdicts: tuple[str, str, str] = VERDICTS) -> str:
    """Decides on the claim that a difference is above 0, from its 95% interval."""
    above, below, neither = verdicts
    if interval["low"] > 0:
        return above
    return below if interval["high"] < 0 else neither


def build_claims_table(runs: dict[int, Results], kl_coef: float) -> str:
    """Builds the table of the paper's claims, one difference per row."""
    steps = [
        (claim, f"{first} − {second}", subtract(select_claim_metric(first, name), select_claim_metric(second, name)))
        for claim, parts in CLAIMS.items()
        for first, second, name in parts
    ]
    return format_claims(runs, steps + _build_over_optimization_steps(runs, kl_coef), VERDICTS)


def format_claims(
    runs: dict[int, Results], steps: list[Step], verdicts: tuple[str, str, str], marks_uncorrected: bool = False
) -> str:
    """
    Formats claims with their interval, p and verdict. A row uses the seeds that have its value.

    With `marks_uncorrected`, a verdict says so if the corrected p does not support it.
    """
    differences = [collect_values(runs, value) for *_, value in steps]
    p_values = iter(compute_p_values([values for values in differences if len(values) > 1]))
    rows = []
    for (claim, label, _), values in zip(steps, differences, strict=True):
        if len(values) < len(runs):
            label = f"{label} ({len(values)} of {len(runs)} seeds)"
        if len(values) < 2:
            rows.append([claim, label, "–", "–", verdicts[2]])
            continue
        summary, p_value = seed_interval(values), next(p_values)
        verdict = decide(summary, verdicts)
        if marks_uncorrected and verdict != verdicts[2] and p_value >= LEVEL:
            verdict = f"{verdict} before correction only"
        rows.append([claim, label, format_difference(summary), f"{p_value:.3f}", verdict])
    header = ["claim", "difference, claimed above 0", "mean and 95% interval", "p, corrected for all rows", "verdict"]
    return format_table(header, rows)


def format_difference(summary: dict[str, float]) -> str:
    """Formats mean and interval of a difference."""
    return f"{summary['mean']:+.3f} [{summary['low']:+.3f}, {summary['high']:+.3f}]"


DIGITS = 9
"""Digits by which differences count as equal, since Student's t has no meaning without a spread."""


def compute_p_value(differences: list[float]) -> float:
    """Computes the two-sided p by Student's t. If all differences are equal, it is 1 for 0, and 0 for other values."""
    rounded = {round(value, DIGITS) for value in differences}
    if len(rounded) == 1:
        return 1.0 if rounded == {0.0} else 0.0
    return float(scipy.stats.ttest_1samp(differences, 0).pvalue)


def compute_p_values(differences: list[list[float]]) -> list[float]:
    """
    Computes the two-sided p of each row by Student's t, corrected for the number of rows.

    The correction is that of Benjamini and Yekutieli, because the rows depend on each other.
    """
    return scipy.stats.false_discovery_control([compute_p_value(row) for row in differences], method="by").tolist()


def _build_over_optimization_steps(runs: dict[int, Results], kl_coef: float) -> list[Step]:
    """Builds the rows on over-optimization of a fixed r: with a smaller β the proxy reward rises and gold falls."""
    sweep, default = list_sweep(runs), f"sweep {kl_coef}"
    smaller = sweep[: sweep.index(default)]
    steps = []
    for name in dict.fromkeys((smaller[-1], smaller[0])):
        for metric, first, second in (("gold", default, name), ("proxy", name, default)):

            def value(run: Results, metric: str = metric, first: str = first, second: str = second) -> float:
                return run[first]["ppo"]["policy"][metric] - run[second]["ppo"]["policy"][metric]

            steps.append(("over-optimization of a fixed r", f"{metric}, β {first[6:]} − β {second[6:]}", value))
    return steps
