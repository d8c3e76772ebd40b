"""CSV files of all metrics, the figure of the training curves with its numbers, and the figure of ours against KL."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from loop_tables import list_refinements
from ours_results import (
    GRPO_SPG,
    SWEPT,
    choose_beta,
    list_betas,
    list_main,
    list_references,
    select_metric,
    starts_from_sft,
)
from tables import METRICS, Results, collect_values, list_policies, list_sweep, smooth, summarize_seeds


KL_TICKS = (0, 0.5, 1, 2, 4, 8, 16, 32)

MARKERS = ("*", "v", "^", "<", ">", "P", "X", "s", "D")
"""Markers of π_SFT, best-of-n, PPO and SPG in the figure of ours."""

COMPARED = {
    "ppo": ("PPO, a fixed reward model", {"color": "#7a7f87", "marker": "X", "linestyle": ":"}),
    "spg": ("RLP-SPG as published (PPO)", {"color": "black", "marker": "s", "linestyle": "--"}),
    GRPO_SPG: ("RLP-SPG by GRPO", {"color": "#3b6fb6", "marker": "D", "linestyle": "-."}),
    "anchored, grpo": ("anchors + refinement in the loop (ours, GRPO)", {"color": "#d9480f", "marker": "o"}),
}
"""Label and style of the methods in the figure against β."""

LEVELS = {"majority_dpo": ("taught the majority's best (ours, DPO)", "#2b8a3e"), "sft": ("π_SFT", "#b0b5bc")}
"""Label and color of the policies without a KL weight in the figure against β."""


def write_csvs(runs: dict[int, Results], folder: Path) -> None:
    """Writes the numbers of the tables, one row per seed and method. A file without rows is not written."""
    policies, reward_models, labels = [], [], []
    for seed, run in runs.items():
        for method, result in list_policies(run).items():
            row = {"seed": seed, "method": method}
            policies.append({**row, **{metric: result["policy"].get(metric) for metric in METRICS}})
            for pairs, metrics in result.get("reward_model", {}).items():
                reward_models.append({**row, "pairs of": pairs, **metrics, **result.get("loss", {})})
            if "synthetic" in result and method in run and starts_from_sft(method):
                rejections = result["synthetic"]["rejections"]
                labels.append({**row, **result["synthetic"], "rejections": json.dumps(rejections)})
    tables = {"policies": policies, "reward_models": reward_models, "labels": labels}
    for name, rows in (tables | {"refinements": list_refinements(runs)}).items():
        if rows:
            pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def write_curves(runs: dict[int, Results], folder: Path) -> None:
    """Writes gold reward and proxy reward against KL during training at each β: `curves.png` and `curves.csv`."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True)
    sweep = list_sweep(runs)
    rows = []
    for color, name in zip(plt.get_cmap("viridis")(np.linspace(0, 0.85, len(sweep))), sweep, strict=True):
        for method, style in (("ppo", "--"), ("spg", "-")):
            curves = [run[name][method]["curve"] for run in runs.values()]
            kl, gold, proxy = (
                smooth(np.mean([[point[key] for point in curve] for curve in curves], axis=0))
                for key in ("kl", "gold", "proxy")
            )
            for axis, values in zip(axes, (gold, proxy), strict=True):
                axis.plot(kl, values, style, color=color, label=f"β {name[6:]}, {method}")
            rollouts = range(1, len(kl) + 1)
            rows += [[name[6:], method, *point] for point in zip(rollouts, kl, gold, proxy, strict=True)]
    labels = ("gold reward of the rollouts", "proxy: the reward model trained against")
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xlabel="clamped KL to π_SFT, nats (training prompts)", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=120)
    plt.close(figure)
    with (folder / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["beta", "method", "rollout", "kl", "gold", "proxy"])
        writer.writerows(rows)


def write_kl_figure(runs: dict[int, Results], folder: Path) -> None:
    """Writes win rate and gold reward against KL, means over seeds, for our main methods, PPO and SPG: `kl.png`."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharex=True)
    references = dict.fromkeys(name for name, _ in list_references(runs))
    styles: dict[str, dict[str, Any]] = {}
    for name, marker in zip(references, itertools.cycle(MARKERS), strict=False):
        fill = "full" if name in SWEPT else "none"
        styles[name] = {"color": "black", "linestyle": "--", "marker": marker, "fillstyle": fill}
    colors = plt.get_cmap("tab20").colors
    styles |= {name: {"color": colors[index % len(colors)], "marker": "o"} for index, name in enumerate(list_main())}
    for axis, metric, label in zip(axes, ("win_rate", "gold"), ("win rate", "gold reward"), strict=True):
        for method, style in styles.items():
            policies = [(method, beta) for beta in list_betas(runs, method)]
            kl, values = (
                [np.mean(collect_values(runs, select_metric(*policy, name))) for policy in policies]
                for name in ("kl", metric)
            )
            axis.plot(kl, values, label=method, markersize=5, linewidth=1, **style)
        axis.set(xlabel="KL to π_SFT, nats (for best-of-n an upper bound)", ylabel=label)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks(KL_TICKS, [f"{kl:g}" for kl in KL_TICKS])
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(folder / "kl.png", dpi=120)
    plt.close(figure)


def write_beta_figure(runs: dict[int, Results], folder: Path) -> None:
    """Writes win rate and share of malformed completions against β, with intervals over seeds: `beta.png`."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    for axis, metric in zip(axes, ("win_rate", "malformed"), strict=True):
        for method, (label, style) in COMPARED.items():
            betas = list_betas(runs, method)
            summaries = [summarize_seeds(runs, select_metric(method, beta, metric)) for beta in betas]
            means = np.array([summary["mean"] for summary in summaries])
            ends = [[summary["low"] for summary in summaries], [summary["high"] for summary in summaries]]
            axis.errorbar(
                betas, means, abs(np.array(ends) - means), label=label, markersize=5, linewidth=1.4, capsize=3, **style
            )
        axis.set_xscale("log", base=2)
        ticks = sorted({beta for method in COMPARED for beta in list_betas(runs, method)})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        axis.set_xlabel("KL weight β")
        axis.grid(alpha=0.3)
    for method, (label, color) in LEVELS.items():
        level = summarize_seeds(runs, select_metric(method, choose_beta(runs, method, "win_rate"), "win_rate"))
        axes[0].axhspan(level["low"], level["high"], color=color, alpha=0.2, linewidth=0)
        axes[0].axhline(level["mean"], color=color, linewidth=1.4, label=label)
    axes[0].set(ylabel="win rate", ylim=(0, None))
    axes[1].set(ylabel="share of malformed completions", ylim=(0, 1.02))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.87))
    figure.savefig(folder / "beta.png", dpi=120)
    plt.close(figure)
