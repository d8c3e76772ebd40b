"""Figures over many seeds, each beside its numbers."""

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tables import FIGURES, Results, smoothed, sweep_of


def write_csv(runs: dict[int, Results], path: Path) -> None:
    """Every policy's figures, one line a seed and method."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "method", *FIGURES])
        for seed, run in runs.items():
            for name, result in run.items():
                named = {name: result} if "policy" in result else {f"{name} {key}": one for key, one in result.items()}
                for label, one in named.items():
                    writer.writerow([seed, label, *(one["policy"].get(figure, "") for figure in FIGURES)])


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
