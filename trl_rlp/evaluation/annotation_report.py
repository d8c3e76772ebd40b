"""Win rates from annotations: one policy against a reference, and two policies on the same prompts."""

from collections.abc import Sequence
from typing import Any

from trl_rlp.evaluation.alpaca_eval import Rows, get_preferences, leaderboard_row
from trl_rlp.evaluation.length_control import FOLDS, Anchors, length_controlled_win_rate
from trl_rlp.evaluation.win_rates import compare_win_rates, win_rate


def describe_annotations(annotations: Rows, anchors: Anchors | None = None) -> dict[str, Any]:
    """
    Computes all win rates of one policy against its reference.

    Args:
        annotations (`list[dict]`):
            See [`read_annotations`].
        anchors ([`Anchors`], *optional*):
            AlpacaEval's anchors. Use them only with AlpacaEval's instructions.

    Returns:
        `dict`: The result of [`win_rate`] on the entries with a preference, and:
        - `missing`: Number of entries without a preference.
        - `length_controlled`: The result of [`length_controlled_win_rate`], or `None` if there are too few prompts.
        - `alpaca_eval`: The result of [`leaderboard_row`], in percent.

    Raises:
        ValueError: If no entry has a preference.
    """
    preferences = get_preferences(annotations)
    known = [value for value in preferences if value is not None]
    if not known:
        raise ValueError(
            f"None of the {len(annotations)} annotations has a preference in [1, 2] (1 if the reference wins). "
            "Judge the outputs first."
        )
    length_controlled = None
    if len(known) >= FOLDS:
        lengths = ([len(row[name]) for row in annotations] for name in ("output_2", "output_1"))
        length_controlled = length_controlled_win_rate(preferences, *lengths, anchors=anchors)
    return {
        **win_rate(known),
        "missing": len(preferences) - len(known),
        "length_controlled": length_controlled,
        "alpaca_eval": leaderboard_row(annotations),
    }


def compare_annotations(first: Rows, second: Rows) -> dict[str, Any]:
    """
    Compares two policies against one reference, prompt by prompt.

    Args:
        first (`list[dict]`):
            Annotations of the first policy.
        second (`list[dict]`):
            Annotations of the second policy for the same instructions, in any order.

    Returns:
        `dict`: The result of [`compare_win_rates`], first minus second, on the instructions with a preference for both
        policies. `missing` is the number of other instructions.

    Raises:
        ValueError: If the instructions or the reference's outputs differ, or no instruction has both preferences.
    """
    by_instruction = {row["instruction"]: row for row in second}
    unmatched = {row["instruction"] for row in first} ^ by_instruction.keys()
    if unmatched or len(by_instruction) != len(second) or len(first) != len(second):
        example = f", such as {sorted(unmatched)[0][:60]!r}" if unmatched else ", or some appear twice"
        raise ValueError(
            f"The annotations of the two policies have different instructions: {len(unmatched)} are in one file "
            f"only{example}. Judge both policies on the same prompts."
        )
    pairs = [(row, by_instruction[row["instruction"]]) for row in first]
    for row, other in pairs:
        if row["output_1"] != other["output_1"]:
            raise ValueError(
                f"The two policies were compared with different reference outputs on {row['instruction'][:60]!r}. "
                "Judge both policies against one reference."
            )
    values = list(zip(get_preferences(first), get_preferences([other for _, other in pairs]), strict=True))
    known = [pair for pair in values if None not in pair]
    if not known:
        raise ValueError("No instruction has a preference for both policies. Judge the outputs first.")
    first_known, second_known = (list(side) for side in zip(*known, strict=True))
    return {**compare_win_rates(first_known, second_known), "missing": len(values) - len(known)}


def describe_win_rates(annotations: Sequence[Rows], anchors: Anchors | None = None) -> dict[str, Any]:
    """
    Computes the win rates of one policy, or of two policies and their comparison.

    Args:
        annotations (`Sequence[list[dict]]`):
            Annotations of one or two policies.
        anchors ([`Anchors`], *optional*):
            AlpacaEval's anchors, as in [`describe_annotations`].

    Returns:
        `dict`: `win_rate`, the result of [`describe_annotations`] for the first policy. With two policies also
        `other_win_rate` for the second one, and `comparison`, the result of [`compare_annotations`].

    Raises:
        ValueError: For the same reasons as [`describe_annotations`] and [`compare_annotations`].
    """
    metrics = {
        name: describe_annotations(rows, anchors)
        for name, rows in zip(("win_rate", "other_win_rate"), annotations, strict=False)
    }
    if len(annotations) == 2:
        metrics["comparison"] = compare_annotations(*annotations)
    return metrics
