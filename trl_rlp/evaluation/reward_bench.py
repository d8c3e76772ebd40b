"""RewardBench's local files in, and its scores of subsets and sections."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.turns import assistant_turn
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
"""Subsets of each section with their weights: numbers of pairs, but for `math-prm`, which weighs as much as code."""


def reward_bench_pairs(rows: Dataset, *, chat: bool = False) -> Dataset:
    """
    Gives pairs that `rewardbench --load_json` reads in TRL's preference format.

    Args:
        rows (`datasets.Dataset`):
            What [`load_rows`] gives of a JSON or JSON-lines file: `chosen` and `rejected` as
            text, beside `prompt` (also under the names `question` and `input`; text or messages), or as whole
            conversations, which bring their prompt along and make a column `prompt` count for nothing.
        chat (`bool`, *optional*, defaults to `False`):
            Whether prompts of text become a user's message, and sides of text an assistant's, for a reward model with
            a chat template. Messages stay messages.

    Returns:
        `datasets.Dataset`: `prompt`, `chosen`, `rejected`, and `subset` if there is one.

    Raises:
        ValueError: if a column is missing, a conversation has no last answer or the sides' beginnings differ.
    """
    for name in ("question", "input"):
        if name in rows.column_names and "prompt" not in rows.column_names:
            rows = rows.rename_column(name, "prompt")
    require_preferences(rows, "rows")
    if isinstance(rows[0]["chosen"], str):
        require_columns(rows, ["prompt"], "rows")
    pairs = Dataset.from_list([_pair(number, row, chat) for number, row in enumerate(rows)])
    return pairs.add_column("subset", rows["subset"][:]) if "subset" in rows.column_names else pairs


def _pair(number: int, row: dict[str, Any], chat: bool) -> dict[str, Any]:
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str):
        if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
            raise ValueError(
                f"Row {number}: `chosen` and `rejected` must be conversations that differ in their last message only. "
                "Drop the row or bring both to one prompt."
            )
        return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
    prompt = row["prompt"]
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, "chosen": assistant_turn(chosen), "rejected": assistant_turn(rejected)}


def subset_accuracies(margins: Sequence[float], subsets: Sequence[str]) -> dict[str, float]:
    """
    Gives the accuracy on each subset as RewardBench counts: a tie is wrong.

    Args:
        margins (`Sequence[float]`):
            r(x, y_w) - r(x, y_l), one a pair.
        subsets (`Sequence[str]`):
            Subset of each pair.

    Returns:
        `dict[str, float]`: in [0, 1], by subset.

    Raises:
        ValueError: if the two differ in length, or a margin is NaN.
    """
    if len(margins) != len(subsets):
        raise ValueError(f"There are {len(margins)} `margins` and {len(subsets)} `subsets`. Give one of each a pair.")
    margins = np.asarray(margins, dtype=float)  # (pairs,)
    if np.isnan(margins).any():
        raise ValueError(f"The margin of pair {int(np.isnan(margins).argmax())} is NaN. Check its two sides.")
    is_right = margins > 0  # (pairs,)
    names = np.asarray(subsets)
    return {name: float(is_right[names == name].mean()) for name in dict.fromkeys(subsets)}


def section_scores(accuracies: dict[str, float]) -> dict[str, float]:
    """
    Gives RewardBench's scores of sections, and their mean.

    Args:
        accuracies (`dict[str, float]`):
            By subset, from [`subset_accuracies`]. Subsets of other names do not count.

    Returns:
        `dict[str, float]`: mean of a section's subsets that are there, weighted as in [`SECTIONS`]; sections of which
        there is none are left out. `average`: the mean of the sections, without RewardBench's prior sets.

    Reference:
        Lambert et al. 2024, RewardBench, https://arxiv.org/abs/2403.13787;
        https://github.com/allenai/reward-bench/blob/05a9005/rewardbench/constants.py for the weights.
    """
    scores = {}
    for section, weights in SECTIONS.items():
        there = [name for name in weights if name in accuracies]
        if there:
            total = sum(weights[name] for name in there)
            scores[section] = sum(weights[name] * accuracies[name] for name in there) / total
    return {**scores, "average": float(np.mean(list(scores.values())))} if scores else {}
