"""What happened to each unlabeled question, and how often the synthetic preferences are right."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster, find_largest_group
from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.quickstart.model_outcome import compute_accuracies
from trl_rlp.report.acceptance import find_right_sides


def label_accuracy(preferences: Dataset, answers: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """
    Measures how often synthetic preferences agree with the known answers.

    Args:
        preferences ([`~datasets.Dataset`]):
            Synthetic preferences D̂ with `sample_row`, the index into `answers`.
        answers (`Sequence[Sequence[str]]`):
            Accepted answers, one entry per sample row.

    Returns:
        `dict`: The keys are:

        - `pairs`: Number of pairs.
        - `decided`: Number of pairs with exactly one right side.
        - `accuracy`: Share of the decided pairs that prefer the right side. `None` if there is no such pair.
        - `neither_right`: Number of pairs without a right side, which the answers cannot decide.
        - `chosen_right`: Share of all pairs whose chosen side is right.
    """
    pairs = list(preferences)
    sides = find_right_sides(pairs, [answers[pair["sample_row"]] for pair in pairs])
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
    Describes what the policy answers to each question of U, and whether SPG accepted the question.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples P with `answers`, `kind` and `question`.
        preferences ([`~datasets.Dataset`]):
            Synthetic preferences D̂ with `sample_row`.
        threshold (`float`):
            Threshold γ, in [0, 1].

    Returns:
        `list[dict]`: One entry per question. The keys are:

        - `kind`, `question`, `answer`: The question and its first accepted answer.
        - `accuracy`: Share of right completions.
        - `confidence`: Share of the largest group.
        - `majority`: Text of the largest group.
        - `majority_right`: Whether this text is right.
        - `status`: `accepted`, `below γ`, `all agree` or `unfinished` (no completion of the largest group finished).
        - `chosen`, `rejected`, `chosen_right`, `rejected_right`: The synthetic pair, for accepted questions only.
    """
    groups = cluster(
        samples.select_columns(["prompt", "completions", "finished"]),
        ExactMatch(),
        threshold=threshold,
        complete_groups=True,
    )
    pairs = {row["sample_row"]: row for row in preferences}
    shares = compute_accuracies(samples, samples["answers"])
    rows = []
    for number, (row, group) in enumerate(zip(samples, groups, strict=True)):
        members = find_largest_group(group["cluster_ids"])
        majority = group["completions"][members[0]] if members else ""
        entry = {
            "kind": row["kind"],
            "question": row["question"],
            "answer": row["answers"][0],
            "accuracy": float(shares[number]),
            "confidence": group["confidence"],
            "majority": majority.strip(),
            "majority_right": is_correct(majority, row["answers"]),
            "status": _get_status(number in pairs, group["confidence"], threshold),
        }
        if number in pairs:
            for side in ("chosen", "rejected"):
                entry[side] = pairs[number][side].strip()
                entry[f"{side}_right"] = is_correct(pairs[number][side], row["answers"])
        rows.append(entry)
    return rows


def _get_status(is_accepted: bool, confidence: float, threshold: float) -> str:
    if is_accepted:
        return "accepted"
    if confidence < threshold:
        return "below γ"
    return "all agree" if confidence == 1 else "unfinished"


def summarize_kinds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Summarizes the questions by kind.

    Args:
        rows (`Sequence[dict]`):
            Result of [`describe_questions`].

    Returns:
        `list[dict]`: One entry per kind, the most accurate kind first. The keys are:

        - `kind`: Name of the kind.
        - `questions`: Number of questions.
        - `accuracy`, `confidence`, `majority_right`: Means over the questions, in [0, 1].
        - `accepted`: Number of accepted questions.
        - `accepted_right`: Number of accepted questions with a right majority.
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
