"""
The monitor in the laboratory: how often it warns of a healthy policy, and how often it misses a collapse or is late.

    python examples/laboratory/monitor.py run --seeds 310-315       # plain PPO policies with the monitor
    python examples/laboratory/monitor.py report --seeds 310-315    # alarms of the finished runs

Each seed trains π_SFT and r once, and then one policy for each weight of the KL divergence. Finished policies are not
trained again. `--settings smoke` takes less than a minute. It only checks that everything runs.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laboratory import parse_seeds
from settings import SETTINGS, Settings


KL_COEFS = (0.05, 0.1, 0.4)
"""Weights of the KL divergence. Most policies collapse with the first two, and hardly any with the last one."""

JUDGE_EVERY = 4
HEALTHY, COLLAPSED = 0.1, 0.3
"""A policy is healthy below the first share of malformed outputs at its end, and collapsed above the second one."""

FILE = "monitor.json"


def run_seed(folder: Path, seed: int, settings: Settings) -> None:
    """Trains the policies of one seed."""
    from seed_run import SeedRun
    from training import train_reward_model

    run = SeedRun(folder / f"seed-{seed}", seed, settings)
    path = run.bench.folder / FILE
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    missing = [kl_coef for kl_coef in KL_COEFS if str(kl_coef) not in results]
    reward_model = train_reward_model(run.bench, run.human, "log_ratio")[0] if missing else None
    for kl_coef in missing:
        results[str(kl_coef)] = run_policy(run, reward_model, kl_coef)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1))
        os.replace(partial, path)
        print(f"seed {seed}, KL weight {kl_coef}: {results[str(kl_coef)]['final']['malformed']:.0%} malformed")


def run_policy(run: Any, reward_model: Any, kl_coef: float) -> dict[str, Any]:
    """Trains a policy with the monitor. Returns the signals of each rollout, and the metrics of the policy."""
    import torch
    from task import write_reference_completions
    from training import train_by_ppo

    from trl_rlp import PolicyMonitorCallback, RefinableReward

    bench = run.bench
    references = write_reference_completions(bench.world, bench.training_prompts, bench.seed)
    reward = RefinableReward(reward_model, bench.tokenizer, [bench.tokenizer.eos_token_id])
    monitor = PolicyMonitorCallback(
        reward,
        comparison=build_comparison(run),
        is_malformed=is_malformed,
        human_pairs=run.human,
        judge=build_gold_judge(bench.compute_gold),
        references=to_rows(prompt=bench.training_prompts, completion=references),
        judge_every=JUDGE_EVERY,
    )
    torch.manual_seed(bench.seed)
    policy, _ = train_by_ppo(bench, [(reward, 1.0)], kl_coef, [monitor])
    return {
        "rollouts": join_measurements(monitor.history),
        "final": bench.evaluate_policy(policy, run.sft, reward_model),
    }


def to_rows(**columns: list) -> Any:
    """Makes a dataset of columns."""
    from datasets import Dataset

    return Dataset.from_dict(columns)


def build_comparison(run: Any) -> Any:
    """Builds the comparison with anchors of π_SFT."""
    from task import SameValue

    from trl_rlp import SemanticAnchors
    from trl_rlp.data.anchors import AnchorComparison

    bench = run.bench
    samples = bench.sample(run.sft, bench.training_prompts, bench.settings.num_generations, 1.0, stream=5)
    return AnchorComparison(SemanticAnchors.from_samples(samples, SameValue()), SameValue())


def is_malformed(prompt: str, completion: str) -> bool:
    """Checks whether a completion gives no value. The parser of this world makes no errors, unlike a user's."""
    from task import parse

    return not parse(prompt, completion).values


def build_gold_judge(compute_gold: Callable[[str, str], float]) -> Callable[..., list[float]]:
    """Builds a judge by the gold reward. It makes no errors, so it shows the best that a judge can do."""

    def judge(prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float]:
        gold = [[compute_gold(*pair) for pair in zip(prompts, texts, strict=True)] for texts in (firsts, seconds)]
        return [(first > second) + 0.5 * (first == second) for first, second in zip(*gold, strict=True)]

    return judge


def join_measurements(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Joins what was measured on the completions of each rollout with what was logged after it."""
    measured = [row for row in history if "malformed" in row]
    logged = [row for row in history if "kl" in row]
    return [first | second for first, second in zip(measured, logged, strict=True)]


def find_alarm(rollouts: list[dict[str, float]], limits: dict[str, float]) -> int | None:
    """Returns the number of the rollout in which the monitor warns for the first time, with given limits."""
    from trl_rlp.trainer.callbacks.monitor_signals import LimitWatch

    watch = LimitWatch(limits)
    for number, values in enumerate(rollouts):
        if watch.update({name: value for name, value in values.items() if name != "step"}):
            return number
    return None


def find_collapse(rollouts: list[dict[str, float]]) -> int:
    """Returns the number of the first rollout in which more outputs are malformed than a collapsed policy's."""
    return next((number for number, row in enumerate(rollouts) if row["malformed"] > COLLAPSED), len(rollouts))


def count_errors(runs: list[dict[str, Any]], limits: dict[str, float]) -> dict[str, Any]:
    """
    Counts the errors of the monitor with given limits.

    Args:
        runs (`list[dict]`):
            Results of [`run_policy`].
        limits (`dict[str, float]`):
            Limits of the signals.

    Returns:
        `dict`: Number of `healthy` and `collapsed` runs, `false_alarms` in the healthy ones, and of the collapsed ones
        those without an alarm (`silent`) and those whose alarm came after the collapse (`late`). `at_alarm` is the
        median share of malformed outputs at alarms in time, `None` without any.
    """
    import numpy as np

    healthy = [run["rollouts"] for run in runs if run["final"]["malformed"] < HEALTHY]
    collapsed = [run["rollouts"] for run in runs if run["final"]["malformed"] > COLLAPSED]
    alarms = [(find_alarm(rollouts, limits), rollouts) for rollouts in collapsed]
    given = [(number, rollouts) for number, rollouts in alarms if number is not None]
    in_time = [rollouts[number]["malformed"] for number, rollouts in given if number <= find_collapse(rollouts)]
    return {
        "healthy": len(healthy),
        "collapsed": len(collapsed),
        "false_alarms": sum(find_alarm(rollouts, limits) is not None for rollouts in healthy),
        "silent": len(alarms) - len(given),
        "late": len(given) - len(in_time),
        "at_alarm": float(np.median(in_time)) if in_time else None,
    }


def describe_errors(name: str, limit: str, errors: dict[str, Any]) -> str:
    """Writes a row of the table."""
    missed = errors["silent"] + errors["late"]
    at_alarm = "–" if errors["at_alarm"] is None else f"{errors['at_alarm']:.2f}"
    return (
        f"| {name} | {limit} | {errors['false_alarms']} of {errors['healthy']} | {missed} of {errors['collapsed']} "
        f"({errors['silent']} silent, {errors['late']} late) | {at_alarm} |"
    )


def describe_interval(count: int, total: int) -> str:
    """Writes the 95 % interval of Clopper and Pearson for a share."""
    from scipy.stats import binomtest

    if total == 0:
        return "unknown"
    interval = binomtest(count, total).proportion_ci(0.95)
    return f"{interval.low:.0%} to {interval.high:.0%}"


def write_report(folder: Path, seeds: list[int], limits: dict[str, float]) -> str:
    """Writes a table of the errors of each signal alone, of all signals that have a limit, and of some of them."""
    from trl_rlp.trainer.callbacks.monitor_signals import SIGNALS, resolve_limits

    runs = []
    for seed in seeds:
        path = folder / f"seed-{seed}" / FILE
        if not path.exists():
            raise SystemExit(f"{path} does not exist. Run seed {seed} with this --output_dir first.")
        runs += list(json.loads(path.read_text()).values())
    between = sum(HEALTHY <= run["final"]["malformed"] <= COLLAPSED for run in runs)
    lines = [
        f"{len(runs)} runs on the seeds {', '.join(map(str, seeds))}. {between} end between {HEALTHY:.0%} and "
        f"{COLLAPSED:.0%} malformed and are in no column.",
        "",
        "| signal | limit | false alarms | misses | malformed at alarm |",
        "|---|---|---|---|---|",
    ]
    chosen = resolve_limits(limits)
    for name, limit in chosen.items():
        if not any(name in row for run in runs for row in run["rollouts"]):
            continue
        side = "<=" if SIGNALS[name].is_upper else ">="
        lines.append(describe_errors(f"`{name}`", f"{side} {limit:g}", count_errors(runs, {name: limit})))
    lines.append(describe_errors("all of these", "", count_errors(runs, chosen)))
    for left_out in (["malformed"], ["malformed", "kl"]):
        kept = {name: limit for name, limit in chosen.items() if name not in left_out}
        lines.append(describe_errors(f"all but {', '.join(left_out)}", "", count_errors(runs, kept)))
    errors = count_errors(runs, chosen)
    false_alarms = describe_interval(errors["false_alarms"], errors["healthy"])
    misses = describe_interval(errors["silent"] + errors["late"], errors["collapsed"])
    lines += ["", f"95 % intervals of all of these: false alarms {false_alarms}, misses {misses}."]
    return "\n".join(lines)


def parse_limits(words: list[str]) -> dict[str, float]:
    """Parses words such as `kl=3`."""
    return {name: float(value) for name, _, value in (word.partition("=") for word in words)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--output_dir", type=Path, default=Path("laboratory_runs"), help="folder of the runs")
    parser.add_argument("--settings", choices=SETTINGS, default="laboratory", help="budget of the runs")
    parser.add_argument("--seeds", type=parse_seeds, default=list(range(310, 316)), help="the seeds, as in 310-315")
    parser.add_argument("--limits", nargs="*", default=[], help="limits of `report` that replace defaults, as in kl=3")
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(write_report(arguments.output_dir, arguments.seeds, parse_limits(arguments.limits)))
        return
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    for seed in arguments.seeds:
        run_seed(arguments.output_dir, seed, SETTINGS[arguments.settings])


if __name__ == "__main__":
    main()
