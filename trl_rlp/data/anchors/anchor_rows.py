"""Rows of anchors: the majority of each prompt's completions, and the pooled majority of several rows."""

from collections.abc import Hashable, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets

from trl_rlp.data.groups.clustering import Group, find_largest_group, restore_share
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.groups.instruction import list_instruction_columns
from trl_rlp.storage.shards import map_shards


Majority = dict[str, Any]

FEATURES = Features(
    {
        "anchor": Value("string"),
        "members": List(Value("string")),
        "members_finished": List(Value("bool")),
        "confidence": Value("float64"),
        "num_generations": Value("int64"),
        "reason": Value("string"),
    }
)
"""The columns of a majority, next to the columns of the prompt itself."""

REASONS: dict[str, str] = {
    "below_threshold": "Lower `threshold`, or check that `equivalence` separates completions by meaning.",
    "single_member": "Sample more completions per prompt until some agree.",
    "contradiction": "Merge anchors that agree.",
}
"""The reasons why a prompt has no anchor, and what to do about each."""

ROWS_AT_ONCE = 10_000
"""Number of rows that are converted to Python values at once."""


def join_copies(samples: Dataset, keys: Sequence[str]) -> Dataset:
    """
    Joins the completions of rows with the same prompt.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples.
        keys (`Sequence[str]`):
            A text for each row that is equal for equal prompts.

    Returns:
        `datasets.Dataset`: One row for each prompt, in the order of first appearance. Other columns are those of the
        first row.
    """
    copies: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        copies.setdefault(key, []).append(row)
    if len(copies) == len(samples):
        return samples
    joined = {name: samples[name][:] for name in ("completions", "finished")}
    columns = {name: [sum((lists[i] for i in rows), []) for rows in copies.values()] for name, lists in joined.items()}
    lists = Dataset.from_dict(columns, features=Features({name: samples.features[name] for name in columns}))
    firsts = samples.remove_columns(list(columns)).select([rows[0] for rows in copies.values()])
    return concatenate_datasets([firsts, lists], axis=1)


def build_rows(samples: Dataset, equivalence: Equivalence, threshold: float) -> Dataset:
    """
    Builds one row of anchors for each row of grouped samples.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples with the columns of [`cluster`], decided for `threshold`.
        equivalence ([`Equivalence`]):
            The column that it names as the instruction is kept.
        threshold (`float`):
            Smallest confidence that is accepted, in [0, 1].

    Returns:
        `datasets.Dataset`: `prompt`, the other columns of single values, such as a key of paraphrases, and the columns
        of [`FEATURES`].
    """
    columns: dict[str, list] = {name: [] for name in FEATURES}
    names = ["completions", "finished", "cluster_ids", "confidence"]
    for batch in samples.select_columns(names).iter(ROWS_AT_ONCE):
        for row in zip(*(batch[name] for name in names), strict=True):
            for name, value in _find_majority(*row, threshold).items():
                columns[name].append(value)
    kept = {"prompt", *list_instruction_columns(equivalence)}
    kept |= {name for name, feature in samples.features.items() if isinstance(feature, Value)}
    kept -= {*FEATURES, "confidence_upper"}
    prompts = samples.select_columns([name for name in samples.column_names if name in kept])
    return concatenate_datasets([prompts, Dataset.from_dict(columns, features=FEATURES)], axis=1)


def _find_majority(
    completions: list[str], finished: list[bool], cluster_ids: list[int], confidence: float, threshold: float
) -> Majority:
    confidence = restore_share(confidence, len(completions))
    group = find_largest_group(cluster_ids) if confidence >= threshold else []
    members = [(completions[i], finished[i]) for i in group] if len(group) > 1 else []
    reason = "below_threshold" if confidence < threshold else None if members else "single_member"
    return _build_majority(members, confidence, len(completions), reason)


def _build_majority(
    members: list[tuple[str, bool]], confidence: float, num_generations: int, reason: str | None
) -> Majority:
    """Returns the columns of a majority. A text is finished if one of its completions is."""
    texts: dict[str, bool] = {}
    for text, is_finished in members:
        texts[text] = texts.get(text, False) or is_finished
    return {
        "anchor": next(iter(texts), None),
        "members": list(texts),
        "members_finished": list(texts.values()),
        "confidence": confidence,
        "num_generations": num_generations,
        "reason": reason,
    }


def pool_rows(
    rows: Dataset,
    labels: Sequence[Hashable],
    equivalence: Equivalence,
    threshold: float,
    *,
    allow_contradiction: bool,
) -> tuple[list[Majority], int]:
    """
    Pools the majorities of the rows with the same label.

    pooled confidence = Σ |g̃_i| / Σ |y_i|

    The sum above is over the rows i whose anchors mean the same, and the sum below is over all rows. g̃_i is the group
    of the anchor, and y_i are all completions. Anchors are grouped as [`cluster`] groups completions. A row without an
    anchor adds nothing to the sum above, because its groups are not known.

    Under `accelerate launch`, the processes share the questions, and every process must call the function.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows of anchors.
        labels (`Sequence`):
            Label of each row.
        equivalence ([`Equivalence`]):
            Decides which anchors mean the same.
        threshold (`float`):
            Smallest pooled confidence that is accepted, in [0, 1].
        allow_contradiction (`bool`):
            Whether the largest group of anchors is accepted although other anchors contradict it.

    Returns:
        `tuple[list[dict], int]`: The columns of [`FEATURES`] for each row, which are equal for rows with the same
        label, and the number of labels whose anchors contradict each other.
    """
    numbers: dict[Hashable, list[int]] = {}
    for number, label in enumerate(labels):
        numbers.setdefault(label, []).append(number)
    columns = rows.select_columns(list(FEATURES))[:]
    majorities = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    shared = [group for group in numbers.values() if len(group) > 1]
    if not shared:
        return majorities, 0
    parts = [[majorities[number] for number in group] for group in shared]
    first_rows = rows.select([group[0] for group in shared])
    grouped = _group_anchors(parts, first_rows, equivalence, threshold)
    num_contradictions = 0
    for group, part, row in zip(shared, parts, grouped, strict=True):
        is_contradiction = max(row["cluster_ids"]) > 0
        num_contradictions += is_contradiction
        is_accepted = row["confidence"] >= threshold and (allow_contradiction or not is_contradiction)
        reason = None if is_accepted else "contradiction" if is_contradiction else "below_threshold"
        pooled = _pool(part, row["cluster_ids"], row["confidence"], reason)
        for number in group:
            majorities[number] = pooled
    return majorities, num_contradictions


def _group_anchors(
    parts: list[list[Majority]], first_rows: Dataset, equivalence: Equivalence, threshold: float
) -> Dataset:
    """Groups the anchors of each label. Each stands for all completions of its group, and the others are empty."""
    texts = Dataset.from_dict({"completions": [[text for one in part for text in _list_texts(one)] for part in parts]})
    prompts = first_rows.select_columns(["prompt", *list_instruction_columns(equivalence)])
    group = Group(equivalence, threshold=threshold, complete_groups=True)
    return map_shards(
        concatenate_datasets([prompts, texts], axis=1),
        lambda index, batch, advance: group.group(batch, advance),
        description="Merging anchors",
    )


def _count_members(majority: Majority) -> int:
    return round(majority["confidence"] * majority["num_generations"])


def _list_texts(majority: Majority) -> list[str]:
    size = 0 if majority["anchor"] is None else _count_members(majority)
    return [majority["anchor"]] * size + [""] * (majority["num_generations"] - size)


def _pool(part: list[Majority], cluster_ids: list[int], confidence: float, reason: str | None) -> Majority:
    owners = [majority for majority in part for _ in range(majority["num_generations"])]
    if not any(majority["members"] for majority in part):
        confidence = max(map(_count_members, part)) / len(owners)
        return _build_majority([], confidence, len(owners), part[0]["reason"])
    winners = {id(owners[position]): owners[position] for position in find_largest_group(cluster_ids)}
    pairs = (zip(one["members"], one["members_finished"], strict=True) for one in winners.values())
    members = [member for pair in pairs for member in pair] if reason is None else []
    return _build_majority(members, confidence, len(owners), reason)


def replace_majorities(rows: Dataset, majorities: Sequence[Majority]) -> Dataset:
    """
    Replaces the majorities of rows.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows of anchors.
        majorities (`Sequence[dict]`):
            The columns of [`FEATURES`] for each row.

    Returns:
        `datasets.Dataset`: The rows with the new columns.
    """
    columns = {name: [majority[name] for majority in majorities] for name in FEATURES}
    new = Dataset.from_dict(columns, features=FEATURES)
    return concatenate_datasets([rows.remove_columns(list(FEATURES)), new], axis=1)
