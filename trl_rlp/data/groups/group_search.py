"""The search for the largest group among the completions of one prompt, with as few comparisons as possible."""

from collections.abc import Generator
from dataclasses import dataclass, field


Pair = tuple[int, int]


@dataclass
class PossibleGroup:
    """
    What is known about a group that one completion may have opened.

    Args:
        leader (`int`):
            Completion that opens the group. Later completions are compared with it.
        is_certain (`bool`):
            Whether the leader certainly opens a group, because no earlier group takes it.
        lower (`int`):
            Weight of the completions that certainly belong to the group.
        upper (`int`):
            Weight of the completions that may belong to the group.
        members (`list[int]`):
            Other completions that certainly belong to the group.
        candidates (`list[int]`):
            Completions that may belong to the group.
    """

    leader: int
    is_certain: bool
    lower: int
    upper: int
    members: list[int] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)


def find_possible_groups(weights: list[int], same: dict[Pair, bool]) -> list[PossibleGroup]:
    """
    Returns what some comparisons reveal about the groups of the leader loop.

    In the leader loop, each completion joins the first group, in the order of opening, whose leader means the same. If
    there is no such group, it opens a new one. Transitivity is never assumed, because an equivalence need not have it.

    Args:
        weights (`list[int]`):
            Number of copies of each distinct completion, in the order of the completions.
        same (`dict`):
            Known comparisons. Maps `(earlier, later)` completions to whether they mean the same.

    Returns:
        `list[PossibleGroup]`: One group per completion that opens a group or may open one, in the order of the
        completions.
    """
    groups: list[PossibleGroup] = []
    for completion, weight in enumerate(weights):
        possible_homes, is_taken = [], False
        for group in groups:
            is_same = same.get((group.leader, completion))
            if is_same is not False:
                possible_homes.append(group)
            if is_same and group.is_certain:
                is_taken = True
                break
        is_settled = is_taken and len(possible_homes) == 1
        for group in possible_homes:
            (group.members if is_settled else group.candidates).append(completion)
            group.lower += weight if is_settled else 0
            group.upper += weight
        if not is_taken:
            is_certain = not possible_homes
            groups.append(PossibleGroup(completion, is_certain, lower=weight if is_certain else 0, upper=weight))
    return groups


def search_groups(
    weights: list[int], needed_weight: int, complete_groups: bool = False
) -> Generator[list[Pair], list[bool], list[PossibleGroup]]:
    """
    Requests comparisons until it is certain whether a group reaches `needed_weight` and, if so, which is the largest.

    The search visits the groups in the order of opening, as the leader loop does. But it compares the completions with
    the most copies first, and it leaves a group as soon as that group cannot win. Earlier groups may take completions
    from the winner. Comparisons with them come last. If several groups are equally large, the first opened wins.

    Args:
        weights (`list[int]`):
            Number of copies of each distinct completion, in the order of the completions.
        needed_weight (`int`):
            Weight that a group must reach, at least 1.
        complete_groups (`bool`, *optional*, defaults to `False`):
            Whether to continue until the group of every completion is certain.

    Yields:
        `list[tuple[int, int]]`: Pairs `(earlier, later)` to compare. Send back one boolean per pair.

    Returns:
        `list[PossibleGroup]`: What is known at the end. If the largest `lower` is at least `needed_weight`, the first
        group with this `lower` is the largest group, and all its members are known. Otherwise no group reaches
        `needed_weight`.
    """
    same: dict[Pair, bool] = {}
    while groups := find_possible_groups(weights, same):
        best = max(groups, key=lambda group: group.lower)
        goals = {group.leader: 0 if complete_groups else _compute_goal(group, best, needed_weight) for group in groups}
        target = next((group for group in groups if group.lower < group.upper >= goals[group.leader]), None)
        if target is None:
            break
        pairs = _pair_with_leader(target, goals[target.leader], weights, same)
        pairs = pairs or [_pair_with_earlier_leader(target, groups, same)]
        verdicts = yield pairs
        same.update(zip(pairs, verdicts, strict=True))
    return groups


def _compute_goal(group: PossibleGroup, best: PossibleGroup, needed_weight: int) -> int:
    """Returns the weight with which the group wins. It must exceed the best group's if that one was opened earlier."""
    return max(needed_weight, best.lower + (group.leader > best.leader))


def _pair_with_leader(target: PossibleGroup, goal: int, weights: list[int], same: dict[Pair, bool]) -> list[Pair]:
    """
    Pairs the group's leader with its candidates, those with the most copies first.

    The list ends where the group could no longer reach its goal if all pairs in the list differ.
    """
    unknown = [completion for completion in target.candidates if (target.leader, completion) not in same]
    pairs, upper = [], target.upper
    for completion in sorted(unknown, key=lambda completion: -weights[completion]):
        if upper < goal:
            break
        pairs.append((target.leader, completion))
        upper -= weights[completion]
    return pairs


def _pair_with_earlier_leader(target: PossibleGroup, groups: list[PossibleGroup], same: dict[Pair, bool]) -> Pair:
    """Returns a pair with an earlier leader, which may still take the group's leader or one of its candidates."""
    earlier = [group.leader for group in groups if group.leader < target.leader]
    contested = [target.leader, *target.candidates, *earlier]
    pairs = ((leader, completion) for completion in contested for leader in earlier if leader < completion)
    return next(pair for pair in pairs if pair not in same)
