"""The methods of the paper's Table 5, and one of ours. They decide which completions form a pair, and which wins."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_rlp.data.groups.clustering import Group, find_largest_group, has_groups, require_decided_groups
from trl_rlp.data.judges.judge import TIE, Judge, judge_pairs
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.turns import drop_missing_keys


Row = dict[str, Any]


class NoPairsError(ValueError):
    """Raised if no prompt has a pair. A training that makes pairs again and again may go on without new ones."""


class Pair(NamedTuple):
    """
    A synthetic preference. Completions are given by their index in the `completions` of the row.

    Args:
        row (`int`):
            Number of the row.
        chosen (`int`):
            Preferred completion, y_w.
        rejected (`int`):
            Other completion, y_l.
        alternatives (`list[int]`):
            Completions that could be `rejected`, including `rejected` itself.
        cluster_ids (`list[int]`, *optional*):
            Group of each completion of the row. None for a method without groups.
        confidence (`float`, *optional*):
            Confidence of the row, in [0, 1]. None for a method without groups.
        probability (`float`, *optional*):
            Probability that the label is right, in [0.5, 1]. None for a method with groups.
        chosen_reward (`float`, *optional*):
            Reward of `chosen`, unbounded, higher is better. None without a reward model. Methods leave it out.
        rejected_reward (`float`, *optional*):
            Reward of `rejected`.
    """

    row: int
    chosen: int
    rejected: int
    alternatives: list[int]
    cluster_ids: list[int] | None = None
    confidence: float | None = None
    probability: float | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None


@dataclass(frozen=True)
class PairingSettings:
    """The arguments of [`synthesize_preferences`] that the methods read, with the fields named as the arguments."""

    equivalence: Any
    rewards: CompletionRewards | None
    judge: Judge | None
    threshold: float
    chosen: str
    allow_unfinished_chosen: bool
    seed: int

    def is_eligible(self, row: Row, index: int) -> bool:
        """Checks whether a completion may be preferred. An unfinished one may only with `allow_unfinished_chosen`."""
        return row["finished"][index] or self.allow_unfinished_chosen


def _keep_all_members(members: list[int], generator: np.random.Generator) -> list[int]:
    return members


def _draw_member(members: list[int], generator: np.random.Generator) -> list[int]:
    return [int(generator.choice(members))]


CHOSEN: dict[str, Callable[[list[int], np.random.Generator], list[int]]] = {
    "reward": _keep_all_members,
    "random": _draw_member,
}
"""How y_w is picked. Each function returns a shortlist of group members. The one with the highest reward is y_w."""


def spg(rows: Sequence[Row], settings: PairingSettings) -> tuple[list[Pair], Counter]:
    """
    Prefers a member of the largest group to a completion outside it, if the group is large enough (SPG).

    Args:
        rows (`Sequence[dict]`):
            Policy samples, with or without groups.
        settings ([`PairingSettings`]):
            Settings. `threshold` is γ.

    Returns:
        `tuple[list[Pair], Counter]`: The pairs in the order of the rows, and the number of rows without a pair for
        each reason.
    """
    return _pair_by_groups(rows, settings, settings.threshold, min_group_size=2)


def select_all(rows: Sequence[Row], settings: PairingSettings) -> tuple[list[Pair], Counter]:
    """
    Applies SPG to all prompts, without a threshold.

    Args:
        rows (`Sequence[dict]`):
            Policy samples, with or without groups.
        settings ([`PairingSettings`]):
            Settings. `threshold` is not used.

    Returns:
        `tuple[list[Pair], Counter]`: Same as [`spg`].

    Relations:
        Equal to [`spg`] at γ = 0, except that groups of one member are accepted.
    """
    return _pair_by_groups(rows, settings, 0.0, min_group_size=1)


def majority_best(rows: Sequence[Row], settings: PairingSettings) -> tuple[list[Pair], Counter]:
    """
    Prefers the best member of the clear majority to any completion with another text ("majority, then reward").

    Ours and not the paper's. y_w is the member of the largest group with the highest reward r_φ, the completion that
    [`best_outputs`] selects with `within="majority"`. y_l is drawn uniformly from all completions with another text
    than y_w, inside and outside the group.

    Args:
        rows (`Sequence[dict]`):
            Policy samples, with or without groups.
        settings ([`PairingSettings`]):
            Settings. `threshold` is γ, and `rewards` picks y_w. `chosen` is not used.

    Returns:
        `tuple[list[Pair], Counter]`: Same as [`spg`].

    Relations:
        Same prompts and same y_w as [`spg`] with `chosen="reward"`, and also prompts whose completions all mean the
        same, but differ in text. Another y_l: a pair of [`spg`] teaches what the majority means. A pair within the
        group teaches what the reward model prefers among completions with the same meaning, such as a style.
    """
    drafts, rejections = [], Counter()
    for number, row in enumerate(_ensure_groups(rows, settings.equivalence, settings.threshold)):
        group = find_largest_group(row["cluster_ids"])
        members = [i for i in group if settings.is_eligible(row, i)]
        other_texts = list({normalize_text(text) for text in row["completions"]})[1:]
        reason = _find_rejection_reason(row["confidence"], settings.threshold, group, 2, members, other_texts)
        if reason:
            rejections[reason] += 1
        else:
            drafts.append((number, row, members))
    settings.rewards.fetch([(number, i) for number, _, members in drafts for i in members])  # scores all in one call
    return [_pair_with_rest(*draft, settings) for draft in drafts], rejections


def _pair_with_rest(number: int, row: Row, members: list[int], settings: PairingSettings) -> Pair:
    chosen = members[int(np.argmax(settings.rewards.fetch([(number, i) for i in members])))]
    texts = [normalize_text(text) for text in row["completions"]]
    rest = [i for i, text in enumerate(texts) if text != texts[chosen]]
    rejected = int(build_row_generator(settings.seed, row).choice(rest))
    return Pair(number, chosen, rejected, rest, row["cluster_ids"], row["confidence"])


def reward(rows: Sequence[Row], settings: PairingSettings) -> tuple[list[Pair], Counter]:
    """
    Draws two completions with different texts, and labels them with the reward model r_φ.

    Args:
        rows (`Sequence[dict]`):
            Policy samples.
        settings ([`PairingSettings`]):
            Settings. `rewards` supplies the labels.

    Returns:
        `tuple[list[Pair], Counter]`: Same as [`spg`].
    """

    def compute_probabilities(drawn: list[tuple[int, int, int]]) -> list[float]:
        firsts = settings.rewards.fetch([(row, i) for row, i, _ in drawn])
        seconds = settings.rewards.fetch([(row, j) for row, _, j in drawn])
        return torch.sigmoid(torch.tensor(firsts).double() - torch.tensor(seconds).double()).tolist()

    return _pair_by_labels(rows, settings, compute_probabilities)


def rlaif(rows: Sequence[Row], settings: PairingSettings) -> tuple[list[Pair], Counter]:
    """
    Draws two completions with different texts, and labels them with a judge. In the paper, the judge is the policy.

    Args:
        rows (`Sequence[dict]`):
            Policy samples.
        settings ([`PairingSettings`]):
            Settings. `judge` supplies the labels.

    Returns:
        `tuple[list[Pair], Counter]`: Same as [`spg`].
    """

    def compute_probabilities(drawn: list[tuple[int, int, int]]) -> list[float | None]:
        asked = [rows[row] for row, _, _ in drawn]
        return judge_pairs(
            settings.judge,
            [row["prompt"] for row in asked],
            [row["completions"][i] for row, (_, i, _) in zip(asked, drawn, strict=True)],
            [row["completions"][j] for row, (_, _, j) in zip(asked, drawn, strict=True)],
        )

    return _pair_by_labels(rows, settings, compute_probabilities)


Generator = Callable[[Sequence[Row], PairingSettings], tuple[list[Pair], Counter]]

GROUP_GENERATORS: dict[str, Generator] = {"spg": spg, "select_all": select_all, "majority_best": majority_best}
"""The methods that group completions by meaning. They need groups, or an equivalence."""

REWARD_GENERATORS: dict[str, Generator] = {"reward": reward}
"""The methods that label pairs with a reward model."""

JUDGE_GENERATORS: dict[str, Generator] = {"rlaif": rlaif}
"""The methods that label pairs with a judge."""

GENERATORS: dict[str, Generator] = {**GROUP_GENERATORS, **REWARD_GENERATORS, **JUDGE_GENERATORS}
"""All methods, under the names that `synthesize_preferences` accepts. Each is in one of the dicts above."""


def count_group_sizes(cluster_ids: list[int]) -> dict[int, int]:
    """
    Counts the members of each group.

    Args:
        cluster_ids (`list[int]`):
            Group of each completion. -1 means no group.

    Returns:
        `dict[int, int]`: Number of members by group id, in the order in which the groups were opened.
    """
    return dict(Counter(cluster_id for cluster_id in cluster_ids if cluster_id >= 0))


def _pair_by_groups(
    rows: Sequence[Row], settings: PairingSettings, threshold: float, min_group_size: int
) -> tuple[list[Pair], Counter]:
    drafts, rejections = [], Counter()
    for number, row in enumerate(_ensure_groups(rows, settings.equivalence, threshold)):
        group = find_largest_group(row["cluster_ids"])
        members = [i for i in group if settings.is_eligible(row, i)]
        outside = [i for i in range(len(row["completions"])) if i not in group]
        reason = _find_rejection_reason(row["confidence"], threshold, group, min_group_size, members, outside)
        if reason:
            rejections[reason] += 1
            continue
        generator = build_row_generator(settings.seed, row)
        rejected = int(generator.choice(outside))
        shortlist = CHOSEN[settings.chosen](members, generator)
        drafts.append((shortlist, Pair(number, -1, rejected, outside, row["cluster_ids"], row["confidence"])))
    return pick_chosen(drafts, settings.rewards), rejections


def _find_rejection_reason(
    confidence: float, threshold: float, group: list[int], min_group_size: int, members: list[int], others: list[Any]
) -> str | None:
    if confidence < threshold:
        return "below_threshold"
    if group and len(group) < min_group_size:
        return "single_member"
    if not others:
        return "all_agree"
    return None if members else "nothing_left"


def pick_chosen(drafts: list[tuple[list[int], Pair]], rewards: CompletionRewards | None) -> list[Pair]:
    """
    Sets `chosen` of each pair to the completion with the highest reward. Among equal rewards, the first one wins.

    Args:
        drafts (`list[tuple[list[int], Pair]]`):
            Pairs without `chosen`, each after the completions that could be it.
        rewards ([`CompletionRewards`], *optional*):
            Rewards of the rows. One call scores everything, the rejected completions included. Without rewards, the
            first completion is chosen.

    Returns:
        `list[Pair]`: The pairs in the same order.
    """
    if rewards is None:
        return [pair._replace(chosen=shortlist[0]) for shortlist, pair in drafts]
    # One call scores everything: the shortlists, and the rejected completions for the audit columns.
    rewards.fetch([(pair.row, i) for shortlist, pair in drafts for i in (*shortlist, pair.rejected)])
    pairs = []
    for shortlist, pair in drafts:
        values = rewards.fetch([(pair.row, i) for i in shortlist])
        pairs.append(pair._replace(chosen=shortlist[int(np.argmax(values))]))
    return pairs


def add_rewards(pairs: list[Pair], rewards: CompletionRewards | None) -> list[Pair]:
    """
    Adds the rewards of both completions of each pair.

    Args:
        pairs (`list[Pair]`):
            The pairs.
        rewards ([`CompletionRewards`], *optional*):
            Rewards of the rows. Without them, nothing is added.

    Returns:
        `list[Pair]`: The pairs in the same order.
    """
    if rewards is None or not pairs:
        return pairs
    values = rewards.fetch([(pair.row, i) for pair in pairs for i in (pair.chosen, pair.rejected)])
    sides = zip(pairs, values[::2], values[1::2], strict=True)
    return [pair._replace(chosen_reward=better, rejected_reward=worse) for pair, better, worse in sides]


def _ensure_groups(rows: Sequence[Row], equivalence: Any, threshold: float) -> Sequence[Row]:
    """Returns samples with groups. The decision at this threshold and the largest group are certain."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if has_groups(columns):
        require_decided_groups(columns, threshold)
        return rows
    groups = Group(equivalence, threshold=threshold).group(columns)
    new_columns = zip(*groups.values(), strict=True)
    return [{**row, **dict(zip(groups, values, strict=True))} for row, values in zip(rows, new_columns, strict=True)]


def _pair_by_labels(
    rows: Sequence[Row],
    settings: PairingSettings,
    compute_probabilities: Callable[[list[tuple[int, int, int]]], list[float | None]],
) -> tuple[list[Pair], Counter]:
    """Draws one pair per row. Labels it with `compute_probabilities`, the probability that the first is better."""
    drawn, rejections = [], Counter()
    for number, row in enumerate(rows):
        texts = [normalize_text(completion) for completion in row["completions"]]
        eligible = [bool(text) and settings.is_eligible(row, i) for i, text in enumerate(texts)]
        distinct = [(i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j]]
        usable = [(i, j) for i, j in distinct if eligible[i] or eligible[j]]
        if usable:
            choice = build_row_generator(settings.seed, row).integers(len(usable))
            drawn.append((eligible, (number, *usable[choice])))
        else:
            rejections["nothing_left" if distinct else "all_agree"] += 1
    probabilities = compute_probabilities([indices for _, indices in drawn]) if drawn else []
    pairs = []
    for (eligible, (number, first, second)), probability in zip(drawn, probabilities, strict=True):
        if probability is None:
            rejections["not_judged"] += 1
            continue
        chosen, rejected = (first, second) if probability > 0.5 else (second, first)
        if abs(probability - 0.5) < TIE:
            rejections["ties"] += 1
        elif not eligible[chosen]:
            rejections["nothing_left"] += 1
        else:
            pairs.append(Pair(number, chosen, rejected, [rejected], probability=max(probability, 1 - probability)))
    return pairs, rejections


def build_row_generator(seed: int, row: Row) -> np.random.Generator:
    """
    Builds a generator that depends only on the seed and the content of the row, not on other rows.

    Args:
        seed (`int`):
            Seed, at least 0.
        row (`dict`):
            Policy samples of one prompt.

    Returns:
        `numpy.random.Generator`: The generator.
    """
    prompt = row["prompt"] if isinstance(row["prompt"], str) else drop_missing_keys(row["prompt"])
    content = json.dumps([prompt, row["completions"]], sort_keys=True).encode()
    return np.random.default_rng([seed, int.from_bytes(hashlib.blake2b(content, digest_size=16).digest())])
