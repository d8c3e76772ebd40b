"""Plots of a quickstart run, as SVG that stands inside a page."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure


BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#9aa3ad"
POLICY_NAMES = {"sft": "π_SFT", "policy": "π  (against r)", "retrained_policy": "π̂  (against r̂)"}


def _svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element, the same for the same figure."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": description, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": description})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def confidence_plot(questions: Sequence[dict[str, Any]], num_generations: int, threshold: float) -> str:
    """
    Shows how many questions have which confidence, and on how many of them the majority is right.

    Args:
        questions (`Sequence[dict]`):
            Entries with `confidence` and `majority_right`.
        num_generations (`int`):
            n: confidences are multiples of 1 / n.
        threshold (`float`):
            γ, drawn as a line.

    Returns:
        `str`: an SVG element.
    """
    figure, axes = _axes(6.4, 2.9)
    places = [step / num_generations for step in range(num_generations + 1)]
    bottom = [0] * len(places)
    for is_right, colour, label in ((True, BLUE, "majority right"), (False, ORANGE, "majority wrong")):
        rows = [row for row in questions if row["majority_right"] == is_right]
        heights = [
            sum(round(row["confidence"] * num_generations) == step for row in rows) for step in range(len(places))
        ]
        axes.bar(places, heights, 0.8 / num_generations, bottom, color=colour, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.axvline(threshold - 0.5 / num_generations, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f" from γ = {threshold:g} on accepted, unless all agree",
        (threshold - 0.5 / num_generations, 1),
        xycoords=("data", "axes fraction"),
        va="top",
        fontsize=9,
    )
    axes.set(xlabel="confidence (share of the largest group)", ylabel="questions")
    axes.set_ylim(0, 1.18 * max(max(bottom), 1))
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return _svg(figure, "Confidence of the questions and whether the majority is right")


def reward_plot(rewards: dict[str, dict[str, Any]]) -> str:
    """
    Shows the accuracy of the reward model before and after refinement on each set of labeled pairs.

    Args:
        rewards (`dict`):
            By the set's name, `before` and `after` with `accuracy` and `pairs`.

    Returns:
        `str`: an SVG element. Bars end in plus and minus one binomial standard error.
    """
    figure, axes = _axes(6.4, 0.9 + 0.62 * len(rewards))
    labels = []
    for row, (name, figures) in enumerate(rewards.items()):
        labels.append(f"{name}\n({figures['before']['pairs']} pairs)")
        for shift, side, colour in ((-0.18, "before", GREY), (0.18, "after", BLUE)):
            accuracy, pairs = figures[side]["accuracy"], figures[side]["pairs"]
            error = (accuracy * (1 - accuracy) / pairs) ** 0.5
            label = {"before": "r, before", "after": "r̂, after"}[side] if row == 0 else None
            axes.barh(row + shift, accuracy, 0.32, xerr=error, color=colour, ecolor="black", label=label)
    axes.axvline(0.5, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="accuracy (dotted line: a coin)")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure, "Accuracy of the reward model before and after refinement")


def policy_plot(policies: dict[str, dict[str, Any]]) -> str:
    """
    Shows the accuracy of the policies with their intervals.

    Args:
        policies (`dict`):
            By name, `accuracy` and `interval`.

    Returns:
        `str`: an SVG element.
    """
    figure, axes = _axes(6.4, 2.0)
    for row, figures in enumerate(policies.values()):
        low, high = figures["interval"]
        accuracy = figures["accuracy"]
        colour = (GREY, ORANGE, BLUE)[row % 3]
        axes.errorbar(accuracy, row, xerr=[[accuracy - low], [high - accuracy]], fmt="o", color=colour, capsize=4)
        axes.annotate(f"{accuracy:.3f}", (accuracy, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(policies)), [POLICY_NAMES[name] for name in policies])
    axes.set_ylim(len(policies) - 0.5, -0.7)
    axes.set(xlim=(0, 1), xlabel="share of right answers on held-out questions, 95 % interval")
    return _svg(figure, "Accuracy of the three policies on held-out questions")
