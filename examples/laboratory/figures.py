"""CSV files of all metrics, and the figure of the training curves with its numbers."""

import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from loop_tables import list_refinements
from tables import METRICS, Results, list_sweep, smooth


def write_csvs(runs: dict[int, Results], folder: Path) -> None:
    """Writes the numbers of the tables, one row per seed and method."""
    policies, reward_models, labels = [], [], []
    for seed, run in runs.items():
        for name, result in run.items():
            named = {name: result} if "policy" in result else {f"{name} {key}": part for key, part in result.items()}
            for method, part in named.items():
                row = {"seed": seed, "method": method}
                policies.append({**row, **{metric: part["policy"].get(metric) for metric in METRICS}})
                for pairs, metrics in part.get("reward_model", {}).items():
                    reward_models.append({**row, "pairs of": pairs, **metrics, **part.get("loss", {})})
                if "synthetic" in result:
                    rejections = part["synthetic"]["rejections"]
                    labels.append({**row, **part["synthetic"], "rejections": json.dumps(rejections)})
    tables = {"policies": policies, "reward_models": reward_models, "labels": labels}
    for name, rows in (tables | {"refinements": list_refinements(runs)}).items():
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
