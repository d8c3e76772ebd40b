"""The policies of ours, PPO and SPG by method and β, and what is computed of them on one seed."""

import numpy as np
from methods import BEST_OF_N, LOOP_METHODS, list_loop_results, split_result
from tables import Results, Value, interpolate, list_sweep


SWEPT = ("ppo", "spg")
"""Methods whose policies at each β are entries of the sweep."""

MAIN = "ours"
"""Table of our main methods. All other methods of ours are controls."""


SWEPT_BASES = {"rounds": "spg", "grpo": "ppo"}
"""What a method without a base of ours is compared with at the same β, by its trainer."""

SINGLE_PARTS = {"anchored": ("anchor_reward", "refined_in_loop"), "anchored, grpo": ("anchor_reward, grpo",)}
"""Methods that have two things, and the methods that have only one of them."""

GRPO_SPG = "spg, grpo"
"""SPG by GRPO. Our methods by GRPO are also compared with it."""


def list_bases(name: str) -> list[str]:
    """Lists the methods that a method of ours is compared with at the same β: its base, and those of its parts."""
    method = LOOP_METHODS[name]
    base = method.base or SWEPT_BASES.get(method.trainer)
    parts = [part for part in SINGLE_PARTS.get(name, ()) if part in LOOP_METHODS]
    return [*([] if base is None else [base]), *parts]


def list_main() -> list[str]:
    """Lists our main methods."""
    return [name for name, method in LOOP_METHODS.items() if method.table == MAIN]


def list_other_grpo() -> list[str]:
    """Lists what is trained by GRPO for comparison."""
    return [name for name, method in LOOP_METHODS.items() if method.trainer == "grpo" and method.table != MAIN]


def list_main_grpo() -> list[str]:
    """Lists our main methods by GRPO, if SPG by GRPO is there to compare them with."""
    return [name for name in list_main() if LOOP_METHODS[name].trainer == "grpo" and GRPO_SPG in LOOP_METHODS]


def starts_from_sft(result: str) -> bool:
    """Checks whether a result uses its pairs and anchors. Results of GRPO for comparison list them without use."""
    name = split_result(result)[0]
    return name not in LOOP_METHODS or LOOP_METHODS[name].reward == "sft"


def list_betas(runs: dict[int, Results], method: str) -> list[float | None]:
    """Lists the β values of a method in increasing order, or only `None` for a method without β."""
    if method in SWEPT:
        return [float(name.removeprefix("sweep ")) for name in list_sweep(runs)]
    if method not in LOOP_METHODS:
        return [None]
    return sorted((split_result(name)[1] for name in list_loop_results(method)), key=lambda beta: beta or 0.0)


def has_curve(runs: dict[int, Results], method: str) -> bool:
    """Checks whether a method has policies at two β values or more, so that its metrics can be interpolated."""
    return len(list_betas(runs, method)) > 1


def name_policy(method: str, beta: float | None) -> str:
    """Names a policy in a table. For a method of ours, this is the name of its result."""
    return method if beta is None else f"{method}, β {beta:g}"


def read_policy(run: Results, method: str, beta: float | None) -> Results:
    """Reads the metrics of a policy from one seed."""
    if method in SWEPT:
        return run[f"sweep {beta}"][method]["policy"]
    return run[name_policy(method, beta)]["policy"]


def select_metric(method: str, beta: float | None, metric: str) -> Value:
    """Returns the function that reads a metric of a policy from one seed."""
    return lambda run: read_policy(run, method, beta).get(metric)


def choose_beta(runs: dict[int, Results], method: str, metric: str) -> float | None:
    """Chooses the β with the highest mean of a metric over seeds, the larger one of equal ones."""
    means = {
        beta: float(np.mean([read_policy(run, method, beta)[metric] for run in runs.values()]))
        for beta in reversed(list_betas(runs, method))
    }
    return max(means, key=lambda beta: means[beta])


def interpolate_sweep(runs: dict[int, Results], method: str, kl: float, metric: str = "gold") -> Value:
    """Returns the function that interpolates a metric of a method at a KL, over its β values."""
    betas = list_betas(runs, method)

    def value(run: Results) -> float | None:
        return interpolate(run["sft"]["policy"], [read_policy(run, method, beta) for beta in betas], kl, metric)

    return value


def compare_at_own_kl(runs: dict[int, Results], method: str, beta: float | None, metric: str = "gold") -> Value:
    """Returns the function that computes a metric of a policy minus that of SPG's sweep at its KL."""

    def value(run: Results) -> float | None:
        policy = read_policy(run, method, beta)
        expected = interpolate_sweep(runs, "spg", policy["kl"], metric)(run)
        return None if expected is None else policy[metric] - expected

    return value


def list_references(runs: dict[int, Results]) -> list[tuple[str, float | None]]:
    """Lists the policies that ours are compared with: π_SFT, best-of-n, and PPO and SPG at each β."""
    swept = [(method, beta) for method in SWEPT for beta in list_betas(runs, method)]
    return [("sft", None), *((name, None) for name in BEST_OF_N), *swept]
