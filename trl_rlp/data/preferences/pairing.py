"""Which two outputs of a prompt make a synthetic pair, and which of them is preferred: the methods of Table 5."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster, largest_group
from trl_rlp.data.judges.judge import TIE, Judge, judge_pairs
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.preferences.output_rewards import OutputRewards


Row = dict[str, Any]


class Pair(NamedTuple):
    """
    A synthetic preference. Outputs are named by their place among the `completions` of their row.

    `alternatives` are the outputs that may stand in for `rejected`, itself included; `probability` is the label's, and
    `cluster_ids` and `confidence` the row's, where the method knows them.
    """

    row: int
    chosen: int
    rejected: int
    alternatives: list[int]
    cluster_ids: list[int] | None = None
    confidence: float | None = None
    probability: float | None = None


@dataclass(frozen=True)
class Request:
    """What [`synthesize_preferences`] was asked for; the fields are its arguments."""

    equivalence: Any
    rewards: OutputRewards | None
    judge: Judge | None
    threshold: float
    chosen: str
    allow_unfinished_chosen: bool
    seed: int

    def may_be_chosen(self, row: Row, index: int) -> bool:
        """An unfinished output may be preferred only where that was asked for."""
        return row["finished"][index] or self.allow_unfinished_chosen


def _every_member(members: list[int], generator: np.random.Generator) -> list[int]:
    return members


def _random_member(members: list[int], generator: np.random.Generator) -> list[int]:
    return [int(generator.choice(members))]


CHOSEN: dict[str, Callable[[list[int], np.random.Generator], list[int]]] = {
    "reward": _every_member,
    "random": _random_member,
}
"""How y_w is picked: by name, the members of the largest group of which the one with the highest reward is taken."""


def spg(samples: Dataset, request: Request) -> tuple[list[Pair], Counter]:
    """
    SPG: a member of the largest group is preferred to an output outside it, where the group is large enough.

    Args:
        samples (`datasets.Dataset`):
            Policy samples, clustered or not.
        request ([`Request`]):
            `threshold` is γ.

    Returns:
        `tuple[list[Pair], Counter]`: the pairs in the order of the rows, and how many rows made none for which reason.
    """
    return _pairs_from_groups(samples, request, request.threshold, smallest_group=2)


def select_all(samples: Dataset, request: Request) -> tuple[list[Pair], Counter]:
    """
    SPG without selection.

    Args:
        samples (`datasets.Dataset`):
            Policy samples, clustered or not.
        request ([`Request`]):
            Its `threshold` is not used.

    Returns:
        `tuple[list[Pair], Counter]`: as [`spg`].

    Relations:
        [`spg`] at γ = 0, with groups of one member admitted.
    """
    return _pairs_from_groups(samples, request, 0.0, smallest_group=1)


def reward(samples: Dataset, request: Request) -> tuple[list[Pair], Counter]:
    """
    Two random outputs of different text, labeled by the reward model r_φ.

    Args:
        samples (`datasets.Dataset`):
            Policy samples.
        request ([`Request`]):
            `rewards` label.

    Returns:
        `tuple[list[Pair], Counter]`: as [`spg`].
    """

    def prefer(drawn: list[tuple[int, int, int]]) -> list[float]:
        firsts = request.rewards.fetch([(number, i) for number, i, _ in drawn])
        seconds = request.rewards.fetch([(number, j) for number, _, j in drawn])
        return torch.sigmoid(torch.tensor(firsts).double() - torch.tensor(seconds).double()).tolist()

    return _labeled_pairs(samples, request, prefer)


def rlaif(samples: Dataset, request: Request) -> tuple[list[Pair], Counter]:
    """
    Two random outputs of different text, labeled by a judge; the paper's judge is the policy.

    Args:
        samples (`datasets.Dataset`):
            Policy samples.
        request ([`Request`]):
            `judge` labels.

    Returns:
        `tuple[list[Pair], Counter]`: as [`spg`].
    """

    def prefer(drawn: list[tuple[int, int, int]]) -> list[float]:
        rows = [samples[number] for number, _, _ in drawn]
        return judge_pairs(
            request.judge,
            [row["prompt"] for row in rows],
            [row["completions"][i] for row, (_, i, _) in zip(rows, drawn, strict=True)],
            [row["completions"][j] for row, (_, _, j) in zip(rows, drawn, strict=True)],
        )

    return _labeled_pairs(samples, request, prefer)


GENERATORS: dict[str, Callable[[Dataset, Request], tuple[list[Pair], Counter]]] = {
    "spg": spg,
    "select_all": select_all,
    "reward": reward,
    "rlaif": rlaif,
}
"""The methods by the name that `synthesize_preferences` takes."""

GROUP_METHODS = ("spg", "select_all")
"""The methods that group outputs by meaning."""


def group_sizes(cluster_ids: list[int]) -> dict[int, int]:
    """
    Gives the size of each group.

    Args:
        cluster_ids (`list[int]`):
            Group of each output; -1 is none.

    Returns:
        `dict[int, int]`: number of members by group id, in the order in which the groups were opened.
    """
    return dict(Counter(cluster_id for cluster_id in cluster_ids if cluster_id >= 0))


def _pairs_from_groups(
    samples: Dataset, request: Request, threshold: float, smallest_group: int
) -> tuple[list[Pair], Counter]:
    drafts, rejections = [], Counter()
    for number, row in enumerate(_grouped(samples, request.equivalence, threshold)):
        group = largest_group(row["cluster_ids"])
        members = [i for i in group if request.may_be_chosen(row, i)]
        outside = [i for i in range(len(row["completions"])) if i not in group]
        reason = _why_rejected(row["confidence"], threshold, group, smallest_group, members, outside)
        if reason:
            rejections[reason] += 1
            continue
        generator = _row_generator(request.seed, row)
        rejected = int(generator.choice(outside))
        shortlist = CHOSEN[request.chosen](members, generator)
        drafts.append((shortlist, Pair(number, -1, rejected, outside, row["cluster_ids"], row["confidence"])))
    return _with_best(drafts, request.rewards), rejections


def _why_rejected(
    confidence: float, threshold: float, group: list[int], smallest_group: int, members: list[int], outside: list[int]
) -> str | None:
    if confidence < threshold:
        return "below_threshold"
    if group and len(group) < smallest_group:
        return "single_member"
    if not outside:
        return "all_agree"
    return None if members else "nothing_left"


def _with_best(drafts: list[tuple[list[int], Pair]], rewards: OutputRewards | None) -> list[Pair]:
    """Puts the member with the highest reward, of equal ones the first, into each pair."""
    if rewards is None:
        return [pair._replace(chosen=shortlist[0]) for shortlist, pair in drafts]
    # One call for all that will be needed: the shortlists, and the rejected ones for the audit columns.
    rewards.fetch([(pair.row, i) for shortlist, pair in drafts for i in (*shortlist, pair.rejected)])
    pairs = []
    for shortlist, pair in drafts:
        values = rewards.fetch([(pair.row, i) for i in shortlist])
        pairs.append(pair._replace(chosen=shortlist[int(np.argmax(values))]))
    return pairs


def _grouped(samples: Dataset, equivalence: Any, threshold: float) -> Dataset:
    """The samples with groups on which the decision at this threshold and the largest group are certain."""
    if not {"cluster_ids", "confidence"} <= set(samples.column_names):
        return cluster(samples, equivalence, threshold=threshold)
    upper = samples["confidence_upper" if "confidence_upper" in samples.column_names else "confidence"]
    for number, (low, high) in enumerate(zip(samples["confidence"], upper, strict=True)):
        if low < high and high >= threshold:
            raise ValueError(
                f"`samples` row {number} was clustered for another threshold: its confidence is between {low} and "
                f"{high}, so {threshold} decides nothing. Cluster with this `threshold` or `complete_groups=True`."
            )
    return samples


def _labeled_pairs(
    samples: Dataset, request: Request, prefer: Callable[[list[tuple[int, int, int]]], list[float]]
) -> tuple[list[Pair], Counter]:
    drawn, rejections = [], Counter()
    for number, row in enumerate(samples):
        texts = [normalize_text(completion) for completion in row["completions"]]
        eligible = [bool(text) and request.may_be_chosen(row, i) for i, text in enumerate(texts)]
        distinct = [(i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j]]
        usable = [(i, j) for i, j in distinct if eligible[i] or eligible[j]]
        if usable:
            choice = _row_generator(request.seed, row).integers(len(usable))
            drawn.append((eligible, (number, *usable[choice])))
        else:
            rejections["nothing_left" if distinct else "all_agree"] += 1
    probabilities = prefer([places for _, places in drawn]) if drawn else []
    pairs = []
    for (eligible, (number, first, second)), probability in zip(drawn, probabilities, strict=True):
        chosen, rejected = (first, second) if probability > 0.5 else (second, first)
        if abs(probability - 0.5) < TIE:
            rejections["ties"] += 1
        elif not eligible[chosen]:
            rejections["nothing_left"] += 1
        else:
            pairs.append(Pair(number, chosen, rejected, [rejected], probability=max(probability, 1 - probability)))
    return pairs, rejections


def _row_generator(seed: int, row: Row) -> np.random.Generator:
    """Randomness that depends on the seed and the row's content alone, whatever rows stand around it."""
    content = json.dumps([row["prompt"], row["completions"]], sort_keys=True).encode()
    return np.random.default_rng([seed, int.from_bytes(hashlib.blake2b(content, digest_size=16).digest())])
