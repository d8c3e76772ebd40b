"""Figures over many seeds, each beside its numbers."""

import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from tables import FIGURES, Results, smoothed, sweep_of


def write_csvs(runs: dict[int, Results], folder: Path) -> None:
    """Every figure of the tables, one line a seed and method."""
    policies, reward_models, labels = [], [], []
    for seed, run in runs.items():
        for name, result in run.items():
            named = {name: result} if "policy" in result else {f"{name} {key}": one for key, one in result.items()}
            for label, one in named.items():
                line = {"seed": seed, "method": label}
                policies.append({**line, **{figure: one["policy"].get(figure) for figure in FIGURES}})
                for pairs, figures in one.get("reward_model", {}).items():
                    reward_models.append({**line, "pairs of": pairs, **figures, **one.get("loss", {})})
                if "synthetic" in result:
                    rejections = one["synthetic"]["rejections"]
                    labels.append({**line, **one["synthetic"], "rejections": json.dumps(rejections)})
    for name, rows in (("policies", policies), ("reward_models", reward_models), ("labels", labels)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def write_curves(runs: dict[int, Results], folder: Path) -> None:
    """Gold and proxy against KL along training, at each β: the figure, and its numbers."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True)
    sweep = sweep_of(runs)
    rows = []
    for colour, name in zip(plt.get_cmap("viridis")(np.linspace(0, 0.85, len(sweep))), sweep, strict=True):
        for method, style in (("ppo", "--"), ("spg", "-")):
            curves = [run[name][method]["curve"] for run in runs.values()]
            kl, gold, proxy = (
                smoothed(np.mean([[point[key] for point in curve] for curve in curves], axis=0))
                for key in ("kl", "gold", "proxy")
            )
            for axis, values in zip(axes, (gold, proxy), strict=True):
                axis.plot(kl, values, style, color=colour, label=f"β {name[6:]}, {method}")
            steps = range(1, len(kl) + 1)
            rows += [[name[6:], method, *point] for point in zip(steps, kl, gold, proxy, strict=True)]
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
