"""Plots that only a quickstart run has: the known answers of its questions, and the accuracy of its policies."""

from collections.abc import Sequence
from typing import Any

from trl_rlp.report.elements import Image
from trl_rlp.report.plots import BLUE, GRAY, ORANGE, WIDE, create_axes, render_svg, with_default_style


POLICY_NAMES = {"sft": "π_SFT", "policy": "π  (against r)", "retrained_policy": "π̂  (against r̂)"}


@with_default_style
def plot_confidence(questions: Sequence[dict[str, Any]], num_generations: int, threshold: float) -> Image:
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
        [`Image`]: The plot.
    """
    figure, axes = create_axes(WIDE)
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
    return render_svg(figure, "Confidence of the questions and whether the majority is right")


@with_default_style
def plot_policies(policies: dict[str, dict[str, Any]]) -> Image:
    """
    Plots the accuracy of each policy with its confidence interval.

    Args:
        policies (`dict`):
            By name of the policy, `accuracy` and `interval`.

    Returns:
        [`Image`]: The plot.
    """
    figure, axes = create_axes((6.4, 2.0))
    for row, metrics in enumerate(policies.values()):
        low, high = metrics["interval"]
        accuracy = metrics["accuracy"]
        color = (GRAY, ORANGE, BLUE)[row % 3]
        axes.errorbar(accuracy, row, xerr=[[accuracy - low], [high - accuracy]], fmt="o", color=color, capsize=4)
        axes.annotate(f"{accuracy:.3f}", (accuracy, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(policies)), [POLICY_NAMES[name] for name in policies])
    axes.set_ylim(len(policies) - 0.5, -0.7)
    axes.set(xlim=(0, 1), xlabel="accuracy on held-out questions, 95% interval")
    return render_svg(figure, "Accuracy of the three policies on held-out questions")
