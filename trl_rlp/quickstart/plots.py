"""Plots of a quickstart run, as SVG elements for an HTML page."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure


BLUE, ORANGE, GRAY = "#3b6fb6", "#d9822b", "#9aa3ad"
POLICY_NAMES = {"sft": "π_SFT", "policy": "π  (against r)", "retrained_policy": "π̂  (against r̂)"}


def _render_svg(figure: Figure, description: str) -> str:
    """Renders a figure as an `<svg>` element. Equal figures give equal text."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": description, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": description})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def _create_axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_confidence(questions: Sequence[dict[str, Any]], num_generations: int, threshold: float) -> str:
    """
    Plots a histogram of the questions' confidence, split by whether the majority is right.

    Args:
        questions (`Sequence[dict]`):
            Entries with `confidence` and `majority_right`.
        num_generations (`int`):
            Number n of completions per question. Confidences are multiples of 1 / n.
        threshold (`float`):
            Threshold γ, shown as a dashed line.

    Returns:
        `str`: An SVG element.
    """
    figure, axes = _create_axes(6.4, 2.9)
    positions = [count / num_generations for count in range(num_generations + 1)]
    bottom = [0] * len(positions)
    for is_right, color, label in ((True, BLUE, "majority right"), (False, ORANGE, "majority wrong")):
        rows = [row for row in questions if row["majority_right"] == is_right]
        heights = [
            sum(round(row["confidence"] * num_generations) == count for row in rows) for count in range(len(positions))
        ]
        axes.bar(positions, heights, 0.8 / num_generations, bottom, color=color, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.axvline(threshold - 0.5 / num_generations, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f" γ = {threshold:g}: accepted from here on, unless all agree",
        (threshold - 0.5 / num_generations, 1),
        xycoords=("data", "axes fraction"),
        va="top",
        fontsize=9,
    )
    axes.set(xlabel="confidence (share of the largest group)", ylabel="questions")
    axes.set_ylim(0, 1.18 * max(max(bottom), 1))
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return _render_svg(figure, "Confidence of the questions and whether the majority is right")


def plot_reward_models(comparisons: dict[str, dict[str, Any]]) -> str:
    """
    Plots the accuracy of the reward model before and after refinement, on each set of labeled pairs.

    Args:
        comparisons (`dict`):
            By name of the set, `before` and `after`, each with `accuracy` and `pairs`.

    Returns:
        `str`: An SVG element. The error bars are plus and minus one binomial standard error.
    """
    figure, axes = _create_axes(6.4, 0.9 + 0.62 * len(comparisons))
    labels = []
    for row, (name, comparison) in enumerate(comparisons.items()):
        labels.append(f"{name}\n({comparison['before']['pairs']} pairs)")
        for shift, side, color in ((-0.18, "before", GRAY), (0.18, "after", BLUE)):
            accuracy, pairs = comparison[side]["accuracy"], comparison[side]["pairs"]
            error = (accuracy * (1 - accuracy) / pairs) ** 0.5
            label = {"before": "r, before", "after": "r̂, after"}[side] if row == 0 else None
            axes.barh(row + shift, accuracy, 0.32, xerr=error, color=color, ecolor="black", label=label)
    axes.axvline(0.5, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="accuracy (dotted line: chance)")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return _render_svg(figure, "Accuracy of the reward model before and after refinement")


def plot_policies(policies: dict[str, dict[str, Any]]) -> str:
    """
    Plots the accuracy of each policy with its confidence interval.

    Args:
        policies (`dict`):
            By name of the policy, `accuracy` and `interval`.

    Returns:
        `str`: An SVG element.
    """
    figure, axes = _create_axes(6.4, 2.0)
    for row, metrics in enumerate(policies.values()):
        low, high = metrics["interval"]
        accuracy = metrics["accuracy"]
        color = (GRAY, ORANGE, BLUE)[row % 3]
        axes.errorbar(accuracy, row, xerr=[[accuracy - low], [high - accuracy]], fmt="o", color=color, capsize=4)
        axes.annotate(f"{accuracy:.3f}", (accuracy, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(policies)), [POLICY_NAMES[name] for name in policies])
    axes.set_ylim(len(policies) - 0.5, -0.7)
    axes.set(xlim=(0, 1), xlabel="accuracy on held-out questions, 95% interval")
    return _render_svg(figure, "Accuracy of the three policies on held-out questions")
