"""The order in which the outputs of one prompt are compared, so that few comparisons settle which group is largest."""

from collections.abc import Generator
from dataclasses import dataclass, field


Pair = tuple[int, int]


@dataclass
class Group:
    """
    What is known of a group that one output may have opened.

    Args:
        leader (`int`):
            The output that opens it, to which later ones are compared.
        is_certain (`bool`):
            Whether the leader surely opens a group: no earlier group takes it.
        lower (`int`):
            Weight of the outputs that surely belong to it.
        upper (`int`):
            Weight of the outputs that may belong to it.
        members (`list[int]`):
            The other outputs that surely belong to it.
        candidates (`list[int]`):
            The outputs that may belong to it.
    """

    leader: int
    is_certain: bool
    lower: int
    upper: int
    members: list[int] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)


def possible_groups(weights: list[int], same: dict[Pair, bool]) -> list[Group]:
    """
    Gives what some comparisons say about the groups of the leader loop: each output joins the first group, in the
    order of opening, whose leader means the same, and opens a new one if there is none.

    Nothing is concluded from transitivity, which a judge need not have.

    Args:
        weights (`list[int]`):
            How often each distinct output was drawn, in the order of the outputs.
        same (`dict`):
            Answers so far: `(earlier, later)` output to whether they mean the same.

    Returns:
        `list[Group]`: one for each output that opens a group or may do so, in the order of the outputs.
    """
    groups: list[Group] = []
    for item, weight in enumerate(weights):
        takers, is_taken = [], False
        for group in groups:
            answer = same.get((group.leader, item))
            if answer is not False:
                takers.append(group)
            if answer and group.is_certain:
                is_taken = True
                break
        is_settled = is_taken and len(takers) == 1
        for group in takers:
            (group.members if is_settled else group.candidates).append(item)
            group.lower += weight if is_settled else 0
            group.upper += weight
        if not is_taken:
            groups.append(Group(item, is_certain=not takers, lower=0 if takers else weight, upper=weight))
    return groups


def search_groups(
    weights: list[int], needed: int, complete_groups: bool = False
) -> Generator[list[Pair], list[bool], list[Group]]:
    """
    Asks for comparisons until it is certain whether a group reaches a weight and, if one does, which is the largest.

    It goes through the groups in the order of opening, as the leader loop does, but compares heavy outputs first and
    leaves a group as soon as it cannot win; what a winner owes to earlier groups is asked at the end. Of equally large
    groups the one that was opened first wins.

    Args:
        weights (`list[int]`):
            How often each distinct output was drawn, in the order of the outputs.
        needed (`int`):
            Weight that a group must reach, at least 1.
        complete_groups (`bool`, *optional*, defaults to `False`):
            Whether to go on until the group of every output is certain.

    Yields:
        `list[tuple[int, int]]`: pairs `(earlier, later)` to compare; send one boolean each.

    Returns:
        `list[Group]`: what is known at the end. If the largest `lower` reaches `needed`, the first group that has it
        is the largest one, and known to the last member; else no group can reach `needed`.
    """
    same: dict[Pair, bool] = {}
    while groups := possible_groups(weights, same):
        best = max(groups, key=lambda group: group.lower)
        goals = {group.leader: 0 if complete_groups else _goal(group, best, needed) for group in groups}
        target = next((group for group in groups if group.lower < group.upper >= goals[group.leader]), None)
        if target is None:
            break
        pairs = _row(target, goals[target.leader], weights, same) or [_contest(target, groups, same)]
        answers = yield pairs
        same.update(zip(pairs, answers, strict=True))
    return groups


def _goal(group: Group, best: Group, needed: int) -> int:
    """The weight with which the group would win: enough, and more than the best has if that was opened first."""
    return max(needed, best.lower + (group.leader > best.leader))


def _row(target: Group, goal: int, weights: list[int], same: dict[Pair, bool]) -> list[Pair]:
    """Comparisons with the group's leader, heavy outputs first: as many as surely stand between it and its end."""
    unknown = [item for item in target.candidates if (target.leader, item) not in same]
    pairs, upper = [], target.upper
    for item in sorted(unknown, key=lambda item: -weights[item]):
        if upper < goal:
            break
        pairs.append((target.leader, item))
        upper -= weights[item]
    return pairs


def _contest(target: Group, groups: list[Group], same: dict[Pair, bool]) -> Pair:
    """A comparison with an earlier leader that may still take the group's leader or one of its outputs."""
    earlier = [group.leader for group in groups if group.leader < target.leader]
    contested = [target.leader, *target.candidates, *earlier]
    pairs = ((leader, item) for item in contested for leader in earlier if leader < item)
    return next(pair for pair in pairs if pair not in same)
