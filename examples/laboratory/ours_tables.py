"""Tables of our methods beside PPO and published SPG: means and paired differences over seeds."""

from loop_tables import COLUMNS
from methods import LOOP_METHODS, list_loop_results
from ours_results import (
    SWEPT,
    compare_at_own_kl,
    has_curve,
    interpolate_sweep,
    list_bases,
    list_betas,
    list_references,
    name_policy,
    select_metric,
    starts_from_sft,
)
from tables import (
    EQUAL_KL,
    Results,
    Value,
    collect_values,
    format_interval,
    format_table,
    subtract,
    summarize_seeds,
)

from trl_rlp.evaluation import seed_interval


INTERPOLATED = {"gold": "gold", "win_rate": "win rate"}
"""Metrics that are compared at equal KL, and their names."""


def format_seeds(runs: dict[int, Results], value: Value) -> str:
    """Formats mean ± half the width of the interval, or a dash if a seed does not have the value."""
    return format_interval(summarize_seeds(runs, value))


def format_reached(runs: dict[int, Results], value: Value) -> str:
    """Formats mean ± half the width over the seeds that have the value, with their number if some do not."""
    values = collect_values(runs, value)
    if len(values) < 2:
        return "–"
    cell = format_interval(seed_interval(values))
    return cell if len(values) == len(runs) else f"{cell} ({len(values)} of {len(runs)} seeds)"


def build_policy_tables(runs: dict[int, Results]) -> dict[str, str]:
    """Builds a table of policies for each table of methods, and one of the policies that they are compared with."""
    policies = {"for comparison": list_references(runs)}
    for name, method in LOOP_METHODS.items():
        policies.setdefault(method.table, []).extend((name, beta) for beta in list_betas(runs, name))
    return {
        table: format_table(
            ["method", *COLUMNS.values()],
            [
                [name_policy(*policy), *(format_seeds(runs, select_metric(*policy, metric)) for metric in COLUMNS)]
                for policy in listed
            ],
        )
        for table, listed in policies.items()
    }


def build_own_kl_table(runs: dict[int, Results]) -> str:
    """Builds the table of gold reward and win rate minus those of SPG's sweep, at the KL of each policy."""
    rows = []
    for method in ["ppo", *LOOP_METHODS]:
        for beta in list_betas(runs, method):
            gains = [compare_at_own_kl(runs, method, beta, metric) for metric in INTERPOLATED]
            kl = format_seeds(runs, select_metric(method, beta, "kl"))
            rows.append([name_policy(method, beta), kl, *(format_reached(runs, gain) for gain in gains)])
    header = [f"{name} − spg's sweep at the same KL" for name in INTERPOLATED.values()]
    return format_table(["method", "KL, nats", *header], rows)


def build_fixed_kl_table(runs: dict[int, Results], metric: str) -> str:
    """Builds the table of a metric at fixed KL: that of SPG's sweep, and each other sweep minus it."""
    base = {kl: interpolate_sweep(runs, "spg", kl, metric) for kl in EQUAL_KL}
    rows = [["spg", *(format_reached(runs, value) for value in base.values())]]
    for method in ["ppo", *LOOP_METHODS]:
        if has_curve(runs, method):
            gains = [subtract(interpolate_sweep(runs, method, kl, metric), value) for kl, value in base.items()]
            rows.append([f"{method} − spg", *(format_reached(runs, gain) for gain in gains)])
    return format_table([f"{INTERPOLATED[metric]} at a KL of", *(f"{kl:g} nats" for kl in EQUAL_KL)], rows)


def build_malformed_table(runs: dict[int, Results]) -> str:
    """Builds the table of the share of malformed completions by β."""
    methods = [*SWEPT, *(name for name in LOOP_METHODS if list_betas(runs, name) != [None])]
    betas = sorted({beta for method in methods for beta in list_betas(runs, method) if beta is not None})
    rows = []
    for method in methods:
        present = list_betas(runs, method)
        cells = [
            format_seeds(runs, select_metric(method, beta, "malformed")) if beta in present else "–" for beta in betas
        ]
        rows.append([method, *cells])
    return format_table(["malformed at a β of", *(f"{beta:g}" for beta in betas)], rows)


def build_control_table(runs: dict[int, Results]) -> str:
    """Builds the table of each method minus the methods that differ from it in one thing, at the same β."""
    rows = []
    for name, base in [(method, other) for method in LOOP_METHODS for other in list_bases(method)]:
        for beta in [beta for beta in list_betas(runs, name) if beta in list_betas(runs, base)]:
            gains = [subtract(*(select_metric(side, beta, metric) for side in (name, base))) for metric in COLUMNS]
            label = f"{name_policy(name, beta)} − {name_policy(base, beta)}"
            rows.append([label, *(format_seeds(runs, gain) for gain in gains)])
    return format_table(["difference", *COLUMNS.values()], rows)


QUALITY = {
    ("synthetic", "accuracy"): "y_w has the higher gold reward",
    ("synthetic", "right"): "y_w is correct, of pairs with one correct side",
    ("synthetic", "pairs"): "pairs",
    ("anchors", "share"): "prompts with an anchor",
    ("anchors", "right"): "anchors that are correct",
    ("picks", "number"): "picks",
    ("picks", "right"): "picks that are correct",
}
"""Metrics of what a method starts with, by their place in a result, and the names of their columns."""


def build_quality_table(runs: dict[int, Results]) -> str:
    """Builds the table of pairs, anchors and picks that methods start with. Methods with equal ones share a row."""
    methods: dict[tuple[str, ...], list[str]] = {}
    for method in filter(starts_from_sft, LOOP_METHODS):
        name = list_loop_results(method)[0]
        cells = tuple(
            format_interval(
                summarize_seeds(runs, lambda run, group=group, key=key, name=name: run[name].get(group, {}).get(key)),
                0 if key in ("pairs", "number") else 3,
            )
            for group, key in QUALITY
        )
        if set(cells) != {"–"}:
            methods.setdefault(cells, []).append(method)
    rows = [["; ".join(names), *cells] for cells, names in methods.items()]
    return format_table(["methods", *QUALITY.values()], rows)
