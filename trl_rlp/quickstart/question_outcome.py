"""What became of each unlabeled question, held against its known answer."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster, largest_group
from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.quickstart.model_outcome import shares_right


def label_accuracy(preferences: Dataset, answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """
    Holds synthetic preferences against the known answers.

    Args:
        preferences (`datasets.Dataset`):
            D̂ with `sample_row`: the row of `answers` that a pair is about.
        answers (`Sequence[Sequence[str]]`):
            Accepted answers by row.

    Returns:
        `dict[str, float]`: `pairs`; `decided`, those in which exactly one side is right; `accuracy`, the share of
        these whose right side is preferred (`None` without any); `neither_right`, pairs that the answers cannot judge;
        `chosen_right`, the share of all pairs whose preferred side is right.
    """
    sides = [
        tuple(is_correct(row[side], answers[row["sample_row"]]) for side in ("chosen", "rejected"))
        for row in preferences
    ]
    decided = [chosen for chosen, rejected in sides if chosen != rejected]
    return {
        "pairs": len(sides),
        "decided": len(decided),
        "accuracy": float(np.mean(decided)) if decided else None,
        "neither_right": sum(not chosen and not rejected for chosen, rejected in sides),
        "chosen_right": float(np.mean([chosen for chosen, _ in sides])),
    }


def describe_questions(samples: Dataset, preferences: Dataset, threshold: float) -> list[dict[str, Any]]:
    """
    Says of every question of U what the policy answers and what became of it.

    Args:
        samples (`datasets.Dataset`):
            P with `answers`, `kind` and `question`.
        preferences (`datasets.Dataset`):
            D̂ with `sample_row`.
        threshold (`float`):
            γ.

    Returns:
        `list[dict]`, one a question: `kind`, `question`, `answer`, `accuracy` of its outputs, `confidence`, `majority`
        (text of the largest group), `majority_right`, `status` (`accepted`, `below γ`, `all agree`, `no ending`), and
        of accepted ones `chosen`, `rejected`, `chosen_right`, `rejected_right`.
    """
    groups = cluster(
        samples.select_columns(["prompt", "completions", "finished"]),
        ExactMatch(),
        threshold=threshold,
        complete_groups=True,
    )
    pairs = {row["sample_row"]: row for row in preferences}
    shares = shares_right(samples, samples["answers"])
    rows = []
    for number, (row, group) in enumerate(zip(samples, groups, strict=True)):
        members = largest_group(group["cluster_ids"])
        majority = group["completions"][members[0]] if members else ""
        entry = {
            "kind": row["kind"],
            "question": row["question"],
            "answer": row["answers"][0],
            "accuracy": float(shares[number]),
            "confidence": group["confidence"],
            "majority": majority.strip(),
            "majority_right": is_correct(majority, row["answers"]),
            "status": _status(number in pairs, group["confidence"], threshold),
        }
        if number in pairs:
            for side in ("chosen", "rejected"):
                entry[side] = pairs[number][side].strip()
                entry[f"{side}_right"] = is_correct(pairs[number][side], row["answers"])
        rows.append(entry)
    return rows


def _status(is_accepted: bool, confidence: float, threshold: float) -> str:
    if is_accepted:
        return "accepted"
    if confidence < threshold:
        return "below γ"
    return "all agree" if confidence == 1 else "no ending"


def by_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Sums up [`describe_questions`] by kind.

    Args:
        rows (`Sequence[dict]`):
            What it gave.

    Returns:
        `list[dict]`, most accurate first: `kind`, `questions`, `accuracy`, `confidence`, `majority_right` (shares),
        `accepted` (count), `accepted_right` (count of accepted ones whose majority is right).
    """
    kinds = defaultdict(list)
    for row in rows:
        kinds[row["kind"]].append(row)
    table = []
    for kind, members in kinds.items():
        accepted = [row for row in members if row["status"] == "accepted"]
        table.append(
            {
                "kind": kind,
                "questions": len(members),
                **{
                    name: float(np.mean([row[name] for row in members]))
                    for name in ("accuracy", "confidence", "majority_right")
                },
                "accepted": len(accepted),
                "accepted_right": sum(row["majority_right"] for row in accepted),
            }
        )
    return sorted(table, key=lambda entry: -entry["accuracy"])
