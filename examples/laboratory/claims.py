"""The paper's claims, each held against the seeds that were run."""

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
    rows = []
    for claim, steps in CLAIMS.items():
        for first, second, figure in steps:
            value = difference(claim_value(first, figure), claim_value(second, figure))
            rows.append([claim, f"{first} − {second}", *_judged(over_seeds(runs, value))])
    rows += _premise(runs, kl_coef)
    return markdown(["claim", "that it is above 0", "mean and 95 % interval", "verdict"], rows)


def _judged(found: dict[str, float]) -> list[str]:
    return [f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]", verdict(found)]


def _premise(runs: dict[int, Results], kl_coef: float) -> list[list[str]]:
    """Over-optimisation of a fixed r: with less restraint r finds the outputs better, and the gold reward worse."""
    weakest, usual = sweep_of(runs)[0], f"sweep {kl_coef}"
    rows = []
    for figure, less, more in (("gold", usual, weakest), ("proxy", weakest, usual)):

        def value(run: Results, figure: str = figure, less: str = less, more: str = more) -> float:
            return run[less]["ppo"]["policy"][figure] - run[more]["ppo"]["policy"][figure]

        label = f"{figure}, β {less[6:]} − β {more[6:]}"
        rows.append(["over-optimisation of a fixed r", label, *_judged(over_seeds(runs, value))])
    return rows
