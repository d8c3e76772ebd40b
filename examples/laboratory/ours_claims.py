"""What is claimed of our methods, tested on the seeds of a report, and whether they meet their goal."""

from claims import Step, compute_p_value, compute_p_values, format_claims, format_difference
from methods import BEST_OF_N, LOOP_METHODS
from ours_results import (
    GRPO_SPG,
    choose_beta,
    compare_at_own_kl,
    list_betas,
    list_main,
    list_main_grpo,
    list_other_grpo,
    name_policy,
    select_metric,
)
from tables import Results, Value, collect_values, format_interval, format_table, subtract, summarize_seeds

from trl_rlp.evaluation import seed_interval


VERDICTS = ("confirmed", "reversed", "not decided")
GAIN = 0.05
"""Goal for the win rate above that of SPG, at `P_VALUE`."""
P_VALUE = 0.01
MALFORMED = {0.1: 0.05, 0.05: 0.1}
"""Goal for the share of malformed completions: its limit at each β."""
QUARTER = 0.1
"""A quarter of the default β."""
NOISE = 0.15
"""Share of wrong verdicts in the claim about noise."""


def compare_with_best(runs: dict[int, Results], method: str, other: str, metric: str, rule: str) -> tuple[str, Value]:
    """
    Compares two methods, each at the β with the best mean of `rule`.

    Returns:
        The name of the difference, and the function that computes it on one seed.
    """
    policies = [(name, choose_beta(runs, name, rule)) for name in (method, other)]
    first, second = (select_metric(*policy, metric) for policy in policies)
    return " − ".join(name_policy(*policy) for policy in policies), subtract(first, second)


def compare_with_held_out(runs: dict[int, Results], method: str, other: str, metric: str, rule: str) -> Value:
    """Compares two methods on each seed, each at the β with the best mean of `rule` over the other seeds."""

    def value(run: Results) -> float | None:
        others = {seed: other_run for seed, other_run in runs.items() if other_run is not run}
        return compare_with_best(others, method, other, metric, rule)[1](run)

    return value


def build_best_table(runs: dict[int, Results], rule: str) -> str:
    """
    Builds the table of each method at its best β minus SPG at its best β. The rule is a metric.

    Our methods by GRPO have another row, minus SPG by GRPO.
    """
    pairs = [(method, "spg") for method in ("ppo", *BEST_OF_N, *list_main(), *list_other_grpo())]
    pairs += [(method, GRPO_SPG) for method in list_main_grpo()]
    metrics = {"win_rate": "win rate", "gold": "gold"}
    labels, differences, held_out = [], [], []
    for pair in pairs:
        for metric in metrics:
            label, value = compare_with_best(runs, *pair, metric, rule)
            labels.append(label)
            differences.append(collect_values(runs, value))
            held_out.append(collect_values(runs, compare_with_held_out(runs, *pair, metric, rule)))
    corrected = compute_p_values(differences)
    rows = []
    for first in range(0, len(labels), len(metrics)):
        row = [labels[first]]
        for index in range(first, first + len(metrics)):
            values = differences[index]
            row += [
                format_difference(seed_interval(values)),
                f"{compute_p_value(values):.3f}",
                f"{corrected[index]:.3f}",
                f"{sum(value < 0 for value in values)} of {len(values)}",
                format_difference(seed_interval(held_out[index])),
            ]
        rows.append(row)
    parts = ("", ", p", ", p, corrected", ", seeds worse", ", β chosen on the other seeds")
    header = [f"{name}{part}" for name in metrics.values() for part in parts]
    return format_table(["difference", *header], rows)


def build_claims_table(runs: dict[int, Results]) -> str:
    """Builds the table of what is claimed of ours, one difference per row."""
    steps = [step for method in list_main() for step in _build_method_steps(runs, method)]
    return format_claims(runs, steps + _build_comparison_steps(runs), VERDICTS, marks_uncorrected=True)


def _build_method_steps(runs: dict[int, Results], method: str) -> list[Step]:
    """Builds the rows of one method: win rate and gold compared with SPG, malformed completions, low β."""
    label, gain = compare_with_best(runs, method, "spg", "win_rate", "win_rate")
    beta = choose_beta(runs, method, "win_rate")
    steps = [
        ("win rate above SPG", label, gain),
        (f"win rate above SPG by more than {GAIN:g}", f"{label} − {GAIN:g}", subtract(gain, lambda run: GAIN)),
        (
            "gold above SPG at equal KL",
            f"{name_policy(method, beta)} − spg's sweep",
            compare_at_own_kl(runs, method, beta),
        ),
    ]
    if method in list_main_grpo():
        label, gain = compare_with_best(runs, method, GRPO_SPG, "win_rate", "win_rate")
        steps.append(("win rate above SPG by GRPO", label, gain))
    for at, limit in MALFORMED.items():
        if is_kl_weight(method) and at in list_betas(runs, method):
            below = subtract(lambda run, limit=limit: limit, select_metric(method, at, "malformed"))
            steps.append((f"malformed below {limit:g}", f"{limit:g} − {name_policy(method, at)}", below))
    if is_kl_weight(method) and all(QUARTER in list_betas(runs, name) for name in (method, "ppo")):
        for claim, at in (
            ("gold above PPO at a quarter of β", QUARTER),
            ("no collapse: gold at a quarter of β above the best of PPO", choose_beta(runs, "ppo", "gold")),
        ):
            sides = ((method, QUARTER), ("ppo", at))
            value = subtract(*(select_metric(*side, "gold") for side in sides))
            steps.append((claim, " − ".join(name_policy(*side) for side in sides), value))
    return steps


def is_kl_weight(method: str) -> bool:
    """Checks whether the β of a method is a KL weight. The β of DPO is on another scale."""
    return LOOP_METHODS[method].trainer != "dpo"


def _build_comparison_steps(runs: dict[int, Results]) -> list[Step]:
    """Builds the rows that compare methods of ours with each other, and ways to use the majority."""
    label, value = compare_with_best(runs, "anchored", "anchor_reward", "win_rate", "win_rate")
    steps = [("refinement helps: win rate", label, value)]
    for method in ("refined_in_loop", "anchored"):
        losses = [compute_noise_loss(name) for name in ("anchor_reward", method)]
        label = f"loss of anchor_reward − loss of {method}, β {QUARTER:g}"
        steps.append((f"refinement loses less win rate to {NOISE:.0%} noise", label, subtract(*losses)))
    for metric, name in (("win_rate", "win rate"), ("gold", "gold")):
        label, value = compare_with_best(runs, "best-of-n, majority", "best-of-n", metric, metric)
        steps.append((f"majority, then reward: {name}", label, value))
    return steps


def compute_noise_loss(method: str) -> Value:
    """Returns the function that computes the win rate that a method loses if its equivalence makes errors."""
    noisy = next(name for name, other in LOOP_METHODS.items() if other.base == method and other.noise == NOISE)
    return subtract(*(select_metric(name, QUARTER, "win_rate") for name in (method, noisy)))


def build_goal_table(runs: dict[int, Results]) -> str:
    """Builds the table of the goal: which of our main methods meet which part of it."""
    methods = list_main()
    compared = [compare_with_best(runs, method, "spg", "win_rate", "win_rate") for method in methods]
    gains = [collect_values(runs, value) for _, value in compared]
    rows = []
    for method, (label, _), values, p_value in zip(methods, compared, gains, compute_p_values(gains), strict=True):
        summary = seed_interval(values)
        is_met: list[bool | None] = [summary["mean"] >= GAIN and p_value < P_VALUE]
        cells = [format_difference(summary), f"{p_value:.3f}", say(is_met[0])]
        interval = summarize_seeds(runs, compare_at_own_kl(runs, method, choose_beta(runs, method, "win_rate")))
        is_met.append(None if interval is None else interval["low"] > 0)
        cells += ["–" if interval is None else format_difference(interval), say(is_met[1])]
        for beta, limit in MALFORMED.items():
            share = None
            if is_kl_weight(method) and beta in list_betas(runs, method):
                share = summarize_seeds(runs, select_metric(method, beta, "malformed"))
            is_met.append(None if share is None else share["mean"] < limit)
            cells += [format_interval(share), say(is_met[-1])]
        rows.append([label, *cells, say(False if False in is_met else None if None in is_met else True)])
    header = ["difference", "win rate", "p, corrected", f"at least {GAIN:+g} at p < {P_VALUE:g}"]
    header += ["gold − spg's sweep at the same KL", "above 0"]
    for beta, limit in MALFORMED.items():
        header += [f"malformed, β {beta:g}", f"below {limit:g}"]
    return format_table([*header, "all of it"], rows)


def say(is_met: bool | None) -> str:
    """Writes whether a part of the goal is met, or a dash if it was not measured."""
    return "–" if is_met is None else "yes" if is_met else "no"
