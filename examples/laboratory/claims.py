"""The paper's claims, tested on the seeds of a report."""

import scipy.stats
from tables import Results, Value, format_table, list_sweep, select_policy_metric, subtract, summarize_seeds


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


def decide(interval: dict[str, float]) -> str:
    """Decides on the claim that a difference is above 0, from its 95% interval."""
    if interval["low"] > 0:
        return "replicated"
    return "reversed" if interval["high"] < 0 else "not replicated"


def build_claims_table(runs: dict[int, Results], kl_coef: float) -> str:
    """Builds the table of the claims, one difference per row."""
    steps = [
        (claim, f"{first} − {second}", subtract(select_claim_metric(first, name), select_claim_metric(second, name)))
        for claim, parts in CLAIMS.items()
        for first, second, name in parts
    ]
    steps += _build_over_optimization_steps(runs, kl_coef)
    p_values = compute_p_values([[value(run) for run in runs.values()] for *_, value in steps])
    rows = []
    for (claim, label, value), p_value in zip(steps, p_values, strict=True):
        summary = summarize_seeds(runs, value)
        interval = f"{summary['mean']:+.3f} [{summary['low']:+.3f}, {summary['high']:+.3f}]"
        rows.append([claim, label, interval, f"{p_value:.3f}", decide(summary)])
    header = ["claim", "difference, claimed above 0", "mean and 95% interval", "p, corrected for all rows", "verdict"]
    return format_table(header, rows)


def compute_p_values(differences: list[list[float]]) -> list[float]:
    """
    Computes the two-sided p of each row by Student's t, corrected for the number of rows.

    The correction is that of Benjamini and Yekutieli, because the rows depend on each other.
    """
    p_values = [scipy.stats.ttest_1samp(values, 0).pvalue for values in differences]
    return scipy.stats.false_discovery_control(p_values, method="by").tolist()


def _build_over_optimization_steps(runs: dict[int, Results], kl_coef: float) -> list[tuple[str, str, Value]]:
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
