"""RewardBench: reads its local files, and computes its scores per subset and section."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from trl_rlp.data.template_options import TEMPLATE_COLUMNS
from trl_rlp.data.turns import build_assistant_turn
from trl_rlp.data.validation import require_columns, require_preferences


SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Subsets of each section and their weights. A weight is a number of pairs. `math-prm` weighs as much as all code."""

KEPT = ("subset", "chosen_finished", "rejected_finished", *TEMPLATE_COLUMNS)
"""Further columns of pairs that have a meaning."""


def reward_bench_pairs(rows: Dataset, *, chat: bool = False) -> Dataset:
    """
    Converts pairs in the format of `rewardbench --load_json` to TRL's preference format.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows of a JSON or JSON Lines file, from [`load_rows`]. There are three formats. In the first, `chosen` and
            `rejected` are text, and `prompt` (or `question` or `input`) is text or messages. In the second, `chosen`
            and `rejected` are whole conversations that include the prompt, and a text in `prompt` is ignored. In the
            third, all three are messages, as in TRL.
        chat (`bool`, *optional*, defaults to `False`):
            Whether to convert text to messages, for a reward model with a chat template. The prompt becomes a user
            message, and both sides become assistant messages. Messages do not change.

    Returns:
        `datasets.Dataset`: The columns `prompt`, `chosen`, `rejected`, and those of [`KEPT`] that `rows` has.

    Raises:
        ValueError: If a column is missing, a conversation is empty, or the two conversations differ before their last
            message.
    """
    for name in ("question", "input"):
        if name in rows.column_names and "prompt" not in rows.column_names:
            rows = rows.rename_column(name, "prompt")
    rows = require_preferences(rows, "rows")
    if isinstance(rows[0]["chosen"], str):
        require_columns(rows, ["prompt"], "rows")
    pairs = Dataset.from_list([_convert_pair(number, row, chat) for number, row in enumerate(rows)])
    kept = [name for name in KEPT if name in rows.column_names]
    return concatenate_datasets([pairs, rows.select_columns(kept)], axis=1) if kept else pairs


def _convert_pair(number: int, row: dict[str, Any], chat: bool) -> dict[str, Any]:
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str):
        prompt = row.get("prompt")
        if isinstance(prompt, list) and prompt and chosen[: len(prompt)] != prompt:  # as in TRL
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if len(chosen) < 2 or len(rejected) < 2 or chosen[:-1] != rejected[:-1]:
            raise ValueError(
                f"Row {number}: `chosen` and `rejected` must be conversations that differ only in their last message. "
                "Drop the row, or give both the same prompt."
            )
        return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
    prompt = row["prompt"]
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, "chosen": build_assistant_turn(chosen), "rejected": build_assistant_turn(rejected)}


def subset_accuracies(margins: Sequence[float], subsets: Sequence[str]) -> dict[str, float]:
    """
    Computes the accuracy on each subset as RewardBench does: a tie is wrong.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one per pair.
        subsets (`Sequence[str]`):
            Subset of each pair.

    Returns:
        `dict[str, float]`: Accuracy in [0, 1] per subset.

    Raises:
        ValueError: If `margins` and `subsets` differ in length, or a margin is NaN.
    """
    if len(margins) != len(subsets):
        raise ValueError(f"There are {len(margins)} `margins` and {len(subsets)} `subsets`. Pass both for each pair.")
    margins = np.asarray(margins, dtype=float)  # (pairs,)
    if np.isnan(margins).any():
        raise ValueError(f"The margin of pair {int(np.isnan(margins).argmax())} is NaN. Check its two sides.")
    is_right = margins > 0  # (pairs,)
    names = np.asarray(subsets)
    return {name: float(is_right[names == name].mean()) for name in dict.fromkeys(subsets)}


def section_scores(accuracies: dict[str, float]) -> dict[str, float]:
    """
    Computes RewardBench's score of each section, and their mean.

    Args:
        accuracies (`dict[str, float]`):
            Accuracy per subset, from [`subset_accuracies`]. Subsets with other names than RewardBench's are ignored.

    Returns:
        `dict[str, float]`: For each section the mean of its available subsets, weighted as in [`SECTIONS`]. A section
        without any subset is skipped. `average` is the mean of the sections, without RewardBench's prior sets.

    Reference:
        RewardBench, [Lambert et al. 2024](https://arxiv.org/abs/2403.13787). The weights are from [`constants.py` of
        RewardBench](https://github.com/allenai/reward-bench/blob/05a9005/rewardbench/constants.py).
    """
    scores = {}
    for section, weights in SECTIONS.items():
        available = [name for name in weights if name in accuracies]
        if available:
            total = sum(weights[name] for name in available)
            scores[section] = sum(weights[name] * accuracies[name] for name in available) / total
    return {**scores, "average": float(np.mean(list(scores.values())))} if scores else {}
