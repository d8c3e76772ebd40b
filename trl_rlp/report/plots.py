"""Plots as SVG documents. Equal data give equal text."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator

from trl_rlp.data.hidden_characters import show_hidden
from trl_rlp.report.acceptance import Acceptance
from trl_rlp.report.elements import Image


BLUE, ORANGE, GRAY = "#3b6fb6", "#d9822b", "#9aa3ad"
COLORS = (ORANGE, BLUE, "#3f8f63", "#8c5aa8", "#b5485d", GRAY)
WIDE = (6.4, 2.9)
SMALL = (4.4, 2.7)
MAX_LABEL = 56
MAX_POINTS = 2000
"""Largest number of points of a scatter plot."""

with_default_style = context("default")
"""Decorator of each function that plots: it draws in matplotlib's own style, whatever the settings of the user are."""


def name_label(text: str) -> str:
    """
    Makes a name from a run safe as a label of a plot.

    Args:
        text (`str`):
            Name of a policy, a metric or a reward function.

    Returns:
        `str`: The name, visible and short. Dollar signs do not start a formula.
    """
    return show_hidden(text.replace("\n", " ")[:MAX_LABEL]).replace("$", r"\$")


def render_svg(figure: Figure, title: str) -> Image:
    """
    Renders a figure as an SVG document.

    Args:
        figure (`matplotlib.figure.Figure`):
            The figure.
        title (`str`):
            What the plot is.

    Returns:
        [`Image`]: The document and its title.
    """
    title, buffer = show_hidden(title), io.StringIO()
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has its own fonts
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = buffer.getvalue()
    return Image(text[text.index("<svg") :], title)


def create_axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """
    Creates a figure with one plot.

    Args:
        size (`tuple[float, float]`):
            Width and height in inches.

    Returns:
        `tuple[Figure, Axes]`.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


@with_default_style
def plot_acceptance(acceptance: Acceptance, threshold: float | None) -> Image:
    """
    Plots the share of accepted prompts against the threshold.

    Args:
        acceptance ([`Acceptance`]):
            The curves.
        threshold (`float`, *optional*):
            Threshold γ of the run, shown as a dashed line.

    Returns:
        [`Image`]: The plot. A band shows where confidences are known as bounds only.
    """
    figure, axes = _create_threshold_axes("prompts with confidence ≥ γ", threshold)
    axes.fill_between(
        acceptance.thresholds, acceptance.lowest, acceptance.highest, color=BLUE, alpha=0.25, linewidth=0
    )
    axes.plot(acceptance.thresholds, acceptance.lowest, color=BLUE, marker=".")
    return render_svg(figure, "Share of accepted prompts against the threshold")


@with_default_style
def plot_label_accuracy(acceptance: Acceptance, threshold: float | None) -> Image:
    """
    Plots the accuracy of the synthetic labels against the threshold.

    Args:
        acceptance ([`Acceptance`]):
            The curves.
        threshold (`float`, *optional*):
            Threshold γ of the run, shown as a dashed line.

    Returns:
        [`Image`]: The plot. The bars are plus and minus one binomial standard error.
    """
    figure, axes = _create_threshold_axes("label accuracy", threshold)
    known = [
        (gamma, accuracy, (accuracy * (1 - accuracy) / decided) ** 0.5)
        for gamma, accuracy, decided in zip(
            acceptance.thresholds, acceptance.accuracy, acceptance.decided, strict=True
        )
        if accuracy is not None and (threshold is None or gamma >= threshold)
    ]
    if known:
        gammas, accuracies, errors = zip(*known, strict=True)
        axes.errorbar(gammas, accuracies, yerr=errors, color=ORANGE, marker=".", capsize=2, linewidth=1.2)
    axes.axhline(0.5, color="black", linestyle=":", linewidth=1)
    return render_svg(figure, "Accuracy of the synthetic labels against the threshold")


def _create_threshold_axes(label: str, threshold: float | None) -> tuple[Figure, Axes]:
    """Creates a plot of shares against the threshold γ, with a dashed line at that of the run."""
    figure, axes = create_axes(SMALL)
    axes.set(xlabel="threshold γ", ylabel=label, xlim=(0, 1.02), ylim=(0, 1.05))
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
        place = {"xycoords": ("data", "axes fraction"), "xytext": (0, 2), "textcoords": "offset points"}
        # Above the plot, where no curve can hide it.
        axes.annotate(f"γ = {threshold:g}", (threshold, 1), ha="center", va="bottom", fontsize=9, **place)
    return figure, axes


@with_default_style
def plot_reward_models(comparisons: Mapping[str, dict[str, Any]], metric: str, label: str) -> Image:
    """
    Plots a metric of the reward model before and after refinement, on each set of labeled pairs.

    Args:
        comparisons (`Mapping`):
            By name of the set, `before` and `after`, each with the metric and `pairs`.
        metric (`str`):
            Name of the metric, in [0, 1]. `accuracy` has bars of plus and minus one binomial standard error.
        label (`str`):
            What the axis says.

    Returns:
        [`Image`]: The plot.
    """
    figure, axes = create_axes((6.4, 0.9 + 0.62 * len(comparisons)))
    labels = []
    for row, (name, comparison) in enumerate(comparisons.items()):
        count = comparison["before"]["pairs"]
        labels.append(f"{name_label(name)}\n({count} {'pair' if count == 1 else 'pairs'})")
        for shift, side, color in ((-0.18, "before", GRAY), (0.18, "after", BLUE)):
            value, pairs = comparison[side][metric], comparison[side]["pairs"]
            error = (value * (1 - value) / pairs) ** 0.5 if metric == "accuracy" else None
            text = {"before": "r, before", "after": "r̂, after"}[side] if row == 0 else None
            axes.barh(row + shift, value, 0.32, xerr=error, color=color, ecolor="black", label=text)
    if metric == "accuracy":
        axes.axvline(0.5, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=label)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return render_svg(
        figure, f"{metric.replace('_', ' ').capitalize()} of the reward model before and after refinement"
    )


@with_default_style
def plot_curves(
    title: str, curves: Mapping[str, Sequence[tuple[float, float]]], eval_curves: Mapping[str, Sequence] | None = None
) -> Image:
    """
    Plots what trainers logged against the optimizer step.

    Args:
        title (`str`):
            What is plotted.
        curves (`Mapping[str, Sequence[tuple]]`):
            Steps and values of each training, by its name.
        eval_curves (`Mapping`, *optional*):
            The same on evaluation data, dashed, in the color of the training with this name.

    Returns:
        [`Image`]: The plot.
    """
    figure, axes = create_axes(SMALL)
    evaluated = eval_curves or {}
    names: list[str] = list(dict.fromkeys([*curves, *evaluated]))
    for index, name in enumerate(names):
        for points, style, suffix in (
            (curves.get(name), "-", ""),
            (evaluated.get(name), "--", ", evaluation"),
        ):
            if points:
                steps, values = zip(*points, strict=True)
                marker = "." if len(points) < 30 else None
                label = name_label(name) + suffix
                axes.plot(steps, values, style, color=COLORS[index % len(COLORS)], marker=marker, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="optimizer step", title=name_label(title))
    axes.title.set_fontsize(9)
    axes.legend(frameon=False, fontsize=8)
    return render_svg(figure, f"{title} against the optimizer step")


@with_default_style
def plot_against_kl(title: str, points: Mapping[str, tuple[float, float, float | None]]) -> Image:
    """
    Plots a metric of policies against their KL divergence.

    Args:
        title (`str`):
            What is plotted.
        points (`Mapping[str, tuple]`):
            KL divergence, value, and standard error or `None`, by name of the policy.

    Returns:
        [`Image`]: The plot.
    """
    figure, axes = create_axes(SMALL)
    for index, (name, (kl, value, error)) in enumerate(points.items()):
        axes.errorbar(
            kl, value, yerr=error, fmt="o", color=COLORS[index % len(COLORS)], label=name_label(name), capsize=3
        )
    axes.margins(0.15)
    axes.set(xlabel="KL to π_SFT, nats per completion", title=name_label(title))
    axes.title.set_fontsize(9)
    axes.legend(frameon=False, fontsize=8)
    return render_svg(figure, f"{title} against the KL divergence")


@with_default_style
def plot_lengths(title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> Image:
    """
    Plots rewards against lengths.

    Args:
        title (`str`):
            What is plotted.
        series (`Mapping[str, tuple]`):
            Lengths in characters and rewards, by name.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of 2000 points, if there are more.

    Returns:
        [`Image`]: The plot.
    """
    figure, axes = create_axes(SMALL)
    for index, (name, (lengths, rewards)) in enumerate(series.items()):
        size = len(lengths)
        kept = np.random.default_rng(seed).permutation(size)[: MAX_POINTS // len(series)]
        axes.scatter(
            np.asarray(lengths, dtype=float)[kept],
            np.asarray(rewards, dtype=float)[kept],
            s=9,
            alpha=0.5,
            linewidths=0,
            color=COLORS[index % len(COLORS)],
            label=name_label(name),
            rasterized=True,
        )
    axes.set(xlabel="length in characters", ylabel="reward", title=name_label(title))
    axes.title.set_fontsize(9)
    axes.legend(frameon=False, fontsize=8)
    return render_svg(figure, title)
