"""Tables of means and intervals over seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from methods import HEADS, METHODS

from trl_rlp.evaluation import seed_interval


Results = dict[str, Any]
Value = Callable[[Results], float | None]

TABLES = {
    "main": ["sft", "best-of-n", "ppo", "uml", "spg", "uml+spg"],
    "losses": ["ppo", "uml", "mvi", "infomax", "cl"],
    "generators": ["ppo", "spg", "select_all", "reward", "rlaif"],
    "controls": ["ppo", "spg", *(name for name, method in METHODS.items() if method.table == "controls")],
    "last token": [
        HEADS["last_token"],
        *(name for name, method in METHODS.items() if method.table == "last token"),
    ],
}
METRICS = ("win_rate", "gold", "right", "kl", "proxy", "malformed", "characters")
EQUAL_KL = (0.5, 1.0, 2.0, 4.0)


def list_policies(run: Results) -> dict[str, Results]:
    """Lists the results that have a policy, by name. An entry of the sweep has one for each method."""
    policies = {}
    for name, result in run.items():
        if "policy" in result:
            policies[name] = result
        else:
            policies |= {f"{name} {key}": part for key, part in result.items() if isinstance(part, dict)}
    return policies


def list_sweep(runs: dict[int, Results]) -> list[str]:
    """Lists the names of the sweep's entries, in increasing order of β."""
    names = [name for name in next(iter(runs.values())) if name.startswith("sweep ")]
    return sorted(names, key=lambda name: float(name[6:]))


def collect_values(runs: dict[int, Results], value: Value) -> list[float]:
    """Collects a value from the seeds that have it."""
    return [number for run in runs.values() if (number := value(run)) is not None]


def summarize_seeds(runs: dict[int, Results], value: Value) -> dict[str, float] | None:
    """Computes mean and interval of a value over seeds. Returns `None` if a seed does not have the value."""
    values = collect_values(runs, value)
    return None if len(values) < len(runs) else seed_interval(values)


def select_policy_metric(method: str, name: str) -> Value:
    """Returns the function that reads a metric of a method's policy from one seed."""
    return lambda run: run[method]["policy"].get(name)


def select_policy_pair_accuracy(method: str) -> Value:
    """Returns the function that reads a reward model's accuracy on pairs of π from one seed."""
    return lambda run: run[method]["reward_model"]["policy"]["accuracy"]


def subtract(first: Value, second: Value) -> Value:
    """Returns the function that computes first minus second on one seed."""
    return lambda run: None if None in (first(run), second(run)) else first(run) - second(run)


def interpolate_gold(run: Results, method: str, kl: float, left_out: str = "") -> float | None:
    """
    Interpolates the gold reward of a method at a KL, between the two nearest policies of its sweep.

    Returns `None` if the KL is larger than that of every policy. The entry `left_out` of the sweep is not used.
    """
    policies = [run[name][method]["policy"] for name in run if name.startswith("sweep ") and name != left_out]
    return interpolate(run["sft"]["policy"], policies, kl)


def interpolate(sft: Results, policies: Sequence[Results], kl: float, metric: str = "gold") -> float | None:
    """Interpolates a metric at a KL, between π_SFT at KL 0 and the policies. `None` above the largest KL."""
    points = sorted([(0.0, sft[metric])] + [(policy["kl"], policy[metric]) for policy in policies])
    kls, values = zip(*points, strict=True)
    return float(np.interp(kl, kls, values)) if kl <= kls[-1] else None


def compare_with_sweep(method: str, base: str = "ppo") -> Value:
    """Returns the function that computes a method's gold reward minus that of the sweep of `base` at the same KL."""

    def value(run: Results) -> float | None:
        if method in ("sft", "best-of-n", base):
            return None
        policy = run[method]["policy"]
        expected = interpolate_gold(run, base, policy["kl"])
        return None if expected is None else policy["gold"] - expected

    return value


def compute_interpolation_error(name: str, method: str = "ppo") -> Value:
    """Returns the function that computes a method's gold reward at one β minus its interpolation from the others."""

    def value(run: Results) -> float | None:
        policy = run[name][method]["policy"]
        interpolated = interpolate_gold(run, method, policy["kl"], left_out=name)
        return None if interpolated is None else policy["gold"] - interpolated

    return value


def smooth(values: Sequence[float], width: int = 5) -> np.ndarray:
    """Computes the mean over the last `width` rollouts, or over fewer at the start."""
    return pd.Series(values).rolling(width, min_periods=1).mean().to_numpy()


def format_interval(summary: dict[str, float] | None, digits: int = 3) -> str:
    """Formats mean ± half the width of the interval, or a dash for `None`."""
    if summary is None:
        return "–"
    return f"{summary['mean']:.{digits}f} ± {(summary['high'] - summary['low']) / 2:.{digits}f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def build_policy_table(runs: dict[int, Results], methods: Sequence[str]) -> str:
    """Builds the table of policies, with differences from plain PPO on the same seeds at equal β and at equal KL."""
    base = methods[0] if "last token" in methods[0] else "ppo"
    rows = []
    for method in methods:
        gains = ["–", "–"]
        if method != base:
            sides = [
                (select_policy_metric(method, name), select_policy_metric(base, name)) for name in ("win_rate", "gold")
            ]
            gains = [format_interval(summarize_seeds(runs, subtract(*both))) for both in sides]
        gains.append(format_interval(summarize_seeds(runs, compare_with_sweep(method))))
        cells = [format_interval(summarize_seeds(runs, select_policy_metric(method, name))) for name in METRICS[:5]]
        rows.append([method, *cells, *gains])
    header = ["method", "win rate", "gold", "correct", "KL, nats", "proxy", f"win rate − {base}", f"gold − {base}"]
    return format_table([*header, "gold − ppo's sweep at the same KL"], rows)


def build_reward_table(runs: dict[int, Results]) -> str:
    """Builds the table of reward models: pairs labeled by the gold reward, and the MI of the multi-view loss."""
    rows = []
    for name in ("ppo", *METHODS, "ppo, last token"):
        accuracy = [
            format_interval(
                summarize_seeds(runs, lambda run, name=name, pairs=pairs: run[name]["reward_model"][pairs]["accuracy"])
            )
            for pairs in ("human", "policy")
        ]
        error = summarize_seeds(runs, lambda run, name=name: run[name]["reward_model"]["policy"]["calibration_error"])
        gains = [
            format_interval(
                summarize_seeds(runs, lambda run, name=name, key=key: subtract_zero_information(run[name], key))
            )
            for key in ("mi", "mi_heldout")
        ]
        rows.append(["r (human pairs)" if name == "ppo" else name, *accuracy, format_interval(error), *gains])
    header = ["reward model", "accuracy, held-out pairs of π_SFT", "accuracy, pairs of π"]
    header += ["calibration error, pairs of π", "MI − zero, training", "MI − zero, held-out prompts"]
    return format_table(header, rows)


def subtract_zero_information(result: Results, key: str) -> float | None:
    """Computes how far an MI estimate is above its zero-information value, in nats."""
    loss = result.get("loss", {})
    return loss[key] - loss["mi_zero"] if "mi" in loss else None


def build_spg_table(runs: dict[int, Results]) -> str:
    """Builds the table of SPG minus each method that differs from it in one thing."""
    others = ["ppo", "human pairs only"]
    others += [
        name
        for name, method in METHODS.items()
        if method.preferences is not None and name != "spg" and method.head == "log_ratio"
    ]
    rows = []
    for other in others:
        sides = [
            (select_policy_metric("spg", name), select_policy_metric(other, name))
            for name in ("win_rate", "gold", "right")
        ]
        sides.append((select_policy_pair_accuracy("spg"), select_policy_pair_accuracy(other)))
        rows.append([other, *(format_interval(summarize_seeds(runs, subtract(*both))) for both in sides)])
    return format_table(["SPG minus", "win rate", "gold", "correct", "reward model accuracy, pairs of π"], rows)


def build_synthetic_table(runs: dict[int, Results]) -> str:
    """Builds the table of the label accuracy of synthetic preferences."""
    rows = []
    for name, method in METHODS.items():
        if method.preferences is None:
            continue
        cells = [
            format_interval(summarize_seeds(runs, lambda run, name=name, key=key: run[name]["synthetic"][key]), digits)
            for key, digits in (("accuracy", 3), ("right", 3), ("pairs", 0))
        ]
        rows.append([name, *cells])
    header = ["generator", "y_w has the higher gold reward", "y_w is correct, of pairs with one correct side", "pairs"]
    return format_table(header, rows)


def build_sweep_table(runs: dict[int, Results]) -> str:
    """Builds the table of gold reward, proxy reward and KL at each β, with r and with the r̂ of SPG."""
    rows = []
    for name in list_sweep(runs):
        values = {
            (method, metric): lambda run, name=name, method=method, metric=metric: run[name][method]["policy"][metric]
            for method in ("ppo", "spg")
            for metric in ("gold", "proxy", "kl", "malformed", "win_rate")
        }
        cells = [format_interval(summarize_seeds(runs, values[key])) for key in values if key[1] != "win_rate"]
        gains = [
            format_interval(summarize_seeds(runs, subtract(values["spg", metric], values["ppo", metric])))
            for metric in ("gold", "win_rate")
        ]
        rows.append([name.removeprefix("sweep "), *cells, *gains])
    header = [
        "β",
        *(f"{method}: {name}" for method in ("PPO", "SPG") for name in ("gold", "proxy", "KL", "malformed")),
    ]
    return format_table([*header, "gold, SPG − PPO", "win rate, SPG − PPO"], rows)


def build_equal_kl_table(runs: dict[int, Results]) -> str:
    """Builds the table of the gold reward at the same KL, interpolated in the sweep, on evaluation prompts."""
    rows = []
    for kl in EQUAL_KL:
        values = [lambda run, method=method, kl=kl: interpolate_gold(run, method, kl) for method in ("ppo", "spg")]
        reached = {seed: run for seed, run in runs.items() if None not in [value(run) for value in values]}
        if len(reached) < 2:
            continue
        cells = [format_interval(summarize_seeds(reached, value)) for value in (*values, subtract(*values[::-1]))]
        rows.append([f"{kl:g}", *cells, str(len(reached))])
    return format_table(["KL, nats", "gold, PPO", "gold, SPG", "SPG − PPO", "seeds that reach this KL"], rows)


def build_interpolation_table(runs: dict[int, Results], method: str = "ppo") -> str:
    """Builds the table of the interpolation error: each inner β of a sweep is predicted from the other values."""
    inner = list_sweep(runs)[1:]
    rows = [
        [
            name.removeprefix("sweep "),
            format_interval(summarize_seeds(runs, lambda run, name=name: run[name][method]["policy"]["kl"])),
            format_interval(summarize_seeds(runs, compute_interpolation_error(name, method))),
        ]
        for name in inner
    ]
    return format_table(["predicted β", "KL, nats", "gold − interpolated gold"], rows)
