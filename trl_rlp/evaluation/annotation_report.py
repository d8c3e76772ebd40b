"""What annotations say of a policy, and of two policies on the same prompts."""

from typing import Any

from trl_rlp.evaluation.alpaca_eval import Rows, leaderboard_row, preferences_of
from trl_rlp.evaluation.length_control import FOLDS, Anchors, length_controlled_win_rate
from trl_rlp.evaluation.win_rate import compare_win_rates, win_rate


def describe_annotations(annotations: Rows, anchors: Anchors | None = None) -> dict[str, Any]:
    """
    Gives all figures of one policy against its reference.

    Args:
        annotations (`list[dict]`):
            See [`read_annotations`].
        anchors ([`Anchors`], *optional*):
            For AlpacaEval's instructions.

    Returns:
        `dict`: [`win_rate`] of the entries that have a preference; `missing`, those that
        have none; `length_controlled` ([`length_controlled_win_rate`]), or `None`
        where there are too few prompts; `alpaca_eval`, the row of its leaderboard, in percent.

    Raises:
        ValueError: if there is no preference.
    """
    preferences = preferences_of(annotations)
    known = [value for value in preferences if value is not None]
    if not known:
        raise ValueError(
            f"None of the {len(annotations)} annotations has a preference from 1 (the reference's output) to 2. Judge "
            "them first."
        )
    controlled = None
    if len(known) >= FOLDS:
        lengths = ([len(row[name]) for row in annotations] for name in ("output_2", "output_1"))
        controlled = length_controlled_win_rate(preferences, *lengths, anchors=anchors)
    return {
        **win_rate(known),
        "missing": len(preferences) - len(known),
        "length_controlled": controlled,
        "alpaca_eval": leaderboard_row(annotations),
    }


def compare_annotations(first: Rows, second: Rows) -> dict[str, Any]:
    """
    Compares two policies against one reference, prompt by prompt.

    Args:
        first (`list[dict]`):
            Annotations of one policy.
        second (`list[dict]`):
            Of the other, for the same instructions in any order.

    Returns:
        `dict`: [`compare_win_rates`], first minus second, over the instructions on which
        both have a preference, and `missing`, the number of the others.

    Raises:
        ValueError: if the instructions or the reference's outputs differ, or there is no preference.
    """
    others = {row["instruction"]: row for row in second}
    unmatched = {row["instruction"] for row in first} ^ others.keys()
    if unmatched or len(others) != len(second) or len(first) != len(second):
        example = f", such as {sorted(unmatched)[0][:60]!r}" if unmatched else ", or have some twice"
        raise ValueError(
            f"The two policies' annotations are not for the same instructions: {len(unmatched)} are in one file "
            f"only{example}. Judge both on one set of prompts."
        )
    pairs = [(row, others[row["instruction"]]) for row in first]
    for row, other in pairs:
        if row["output_1"] != other["output_1"]:
            raise ValueError(
                f"The two policies were compared with different outputs of a reference on "
                f"{row['instruction'][:60]!r}. Judge both against one reference."
            )
    values = list(zip(preferences_of(first), preferences_of([other for _, other in pairs]), strict=True))
    known = [pair for pair in values if None not in pair]
    compared = compare_win_rates(*(list(side) for side in zip(*known, strict=True))) if known else None
    if compared is None:
        raise ValueError("The two policies have no instruction on which both have a preference. Judge them first.")
    return {**compared, "missing": len(values) - len(known)}
