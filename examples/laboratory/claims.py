"""The paper's claims, each held against the seeds that were run."""

import scipy.stats
from tables import Results, Value, difference, markdown, over_seeds, policy_figure, sweep_of


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


def claim_value(method: str, figure: str) -> Value:
    """What a claim is about."""
    if figure == "label":
        return lambda run: run[method]["synthetic"]["accuracy"]
    return policy_figure(method, figure)


def verdict(found: dict[str, float]) -> str:
    """What an interval of a difference says of a claim that it is above 0."""
    if found["low"] > 0:
        return "replicated"
    return "reversed" if found["high"] < 0 else "not replicated"


def claims_table(runs: dict[int, Results], kl_coef: float) -> str:
    """Each of the paper's claims, step by step."""
    steps = [
        (claim, f"{first} − {second}", difference(claim_value(first, figure), claim_value(second, figure)))
        for claim, parts in CLAIMS.items()
        for first, second, figure in parts
    ]
    steps += _premise(runs, kl_coef)
    chances = false_discovery([[value(run) for run in runs.values()] for *_, value in steps])
    rows = []
    for (claim, label, value), chance in zip(steps, chances, strict=True):
        found = over_seeds(runs, value)
        interval = f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        rows.append([claim, label, interval, f"{chance:.3f}", verdict(found)])
    header = ["claim", "that it is above 0", "mean and 95 % interval", "p, corrected for all rows", "verdict"]
    return markdown(header, rows)


def false_discovery(differences: list[list[float]]) -> list[float]:
    """Two-sided p of each row by Student's t, corrected for their number (Benjamini and Yekutieli: rows depend)."""
    chances = [scipy.stats.ttest_1samp(values, 0).pvalue for values in differences]
    return scipy.stats.false_discovery_control(chances, method="by").tolist()


def _premise(runs: dict[int, Results], kl_coef: float) -> list[tuple[str, str, Value]]:
    """Over-optimization of a fixed r: with less restraint r finds the outputs better, and the gold reward worse."""
    sweep, usual = sweep_of(runs), f"sweep {kl_coef}"
    weaker = sweep[: sweep.index(usual)]
    steps = []
    for name in dict.fromkeys((weaker[-1], weaker[0])):
        for figure, less, more in (("gold", usual, name), ("proxy", name, usual)):

            def value(run: Results, figure: str = figure, less: str = less, more: str = more) -> float:
                return run[less]["ppo"]["policy"][figure] - run[more]["ppo"]["policy"][figure]

            steps.append(("over-optimization of a fixed r", f"{figure}, β {less[6:]} − β {more[6:]}", value))
    return steps
