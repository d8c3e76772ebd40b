import random

import pytest

from trl_rlp.data.groups.group_search import find_possible_groups, search_groups


def run_leader_loop(weights, relation):
    """Runs the plain loop: each completion joins the first group whose leader means the same, or opens a new group."""
    groups = []
    for completion in range(len(weights)):
        home = next((group for group in groups if relation[group[0], completion]), None)
        groups.append([completion]) if home is None else home.append(completion)
    return groups


def run_search(weights, relation, needed_weight, complete_groups=False):
    """Runs a search on a table of comparisons. Returns the groups and all compared pairs, in order."""
    search, verdicts, compared = search_groups(weights, needed_weight, complete_groups), None, []
    while True:
        try:
            pairs = search.send(verdicts)
        except StopIteration as end:
            return end.value, compared
        assert pairs and all(earlier < later for earlier, later in pairs)
        compared += pairs
        verdicts = [relation[pair] for pair in pairs]


def draw_case(generator):
    count = generator.randrange(1, 9)
    weights = [generator.choice([1, 1, 1, 2, 3, 6]) for _ in range(count)]
    density = generator.choice([0.05, 0.3, 0.6, 0.95])
    meaning = [generator.randrange(1, 4) for _ in range(count)]
    transitive = generator.random() < 0.4
    relation = {
        (a, b): meaning[a] == meaning[b] if transitive else generator.random() < density
        for b in range(count)
        for a in range(b)
    }
    return weights, relation


@pytest.mark.parametrize("seed", range(4))
def test_decision_and_largest_group_match_the_plain_loop(seed):
    """Covers random weights, random relations (transitive or not), and every possible needed weight."""
    generator = random.Random(seed)
    for _ in range(400):
        weights, relation = draw_case(generator)
        expected = run_leader_loop(weights, relation)
        sizes = [sum(weights[completion] for completion in group) for group in expected]
        for needed_weight in range(1, sum(weights) + 3):
            groups, compared = run_search(weights, relation, needed_weight)
            assert len(compared) == len(set(compared)), "A pair was compared twice."
            best = max(groups, key=lambda group: group.lower)
            assert (best.lower >= needed_weight) == (max(sizes) >= needed_weight)
            assert best.lower <= max(sizes) <= max(group.upper for group in groups)
            if max(sizes) >= needed_weight:
                assert [best.leader, *best.members] == expected[sizes.index(max(sizes))]
                assert best.upper == best.lower and not best.candidates
            for group in groups:
                if group.is_certain:
                    expected_group = next(other for other in expected if other[0] == group.leader)
                    assert set(group.members) <= set(expected_group)


@pytest.mark.parametrize("seed", range(2))
def test_complete_groups_match_the_plain_loop_and_need_no_more_pairs(seed):
    generator = random.Random(seed)
    for _ in range(500):
        weights, relation = draw_case(generator)
        expected = run_leader_loop(weights, relation)
        groups, compared = run_search(weights, relation, generator.randrange(1, 9), complete_groups=True)
        assert [[group.leader, *group.members] for group in groups] == expected
        pairs_of_the_loop = {
            (group[0], completion) for completion in range(len(weights)) for group in expected if group[0] < completion
        } - {
            (later[0], completion)
            for index, group in enumerate(expected)
            for completion in group
            for later in expected[index + 1 :]
        }
        assert set(compared) == pairs_of_the_loop and len(compared) == len(set(compared))


def build_all_different(count):
    return {(a, b): False for b in range(count) for a in range(b)}


def test_one_completion_or_one_heavy_group_needs_few_comparisons():
    assert run_search([5], {}, 3)[1] == []
    assert run_search([], {}, 1) == ([], [])
    # Seven of ten are copies of one completion. Only the membership of the three others is open.
    relation = {(0, 1): False, (0, 2): True, (0, 3): False}
    assert run_search([7, 1, 1, 1], {**build_all_different(4), **relation}, 5)[1] == [(0, 1), (0, 2), (0, 3)]


def test_a_rejection_stops_before_all_pairs_of_a_leader():
    """
    Four different completions with one copy each, and a needed weight of 3. The first group still reaches 3 after one
    miss, so two misses end it. The second group has three completions left and ends after one miss. The third group
    cannot reach 3. The plain loop compares six pairs.
    """
    assert run_search([1, 1, 1, 1], build_all_different(4), 3)[1] == [(0, 1), (0, 2), (1, 2)]
    # With a needed weight of 4, one miss is enough.
    assert run_search([1, 1, 1, 1], build_all_different(4), 4)[1] == [(0, 1)]


def test_completions_with_many_copies_come_first():
    """
    The weights are 1, 1 and 4, and the needed weight is 4. Completion 0 is compared with the heavy completion 2 and
    cannot win. The same is true for completion 1. Completion 2 alone is enough, so whether 0 and 1 belong together
    does not matter.
    """
    assert run_search([1, 1, 4], build_all_different(3), 4)[1] == [(0, 2), (1, 2)]


def test_the_first_opened_of_equally_large_groups_wins():
    relation = {**build_all_different(4), (0, 2): True, (1, 3): True}
    groups, compared = run_search([1, 1, 1, 1], relation, 2)
    assert [groups[0].leader, *groups[0].members] == [0, 2]
    assert (1, 3) not in compared


def test_a_completion_joins_the_earlier_of_two_groups():
    """Completion 2 matches both leaders. The plain loop puts it into the group of 0, although 1 is heavier."""
    relation = {(0, 1): False, (0, 2): True, (1, 2): True}
    groups, _ = run_search([1, 2, 1], relation, 2)
    assert [groups[0].leader, *groups[0].members] == [0, 2]


def test_bounds_before_and_after_a_comparison():
    first, second = find_possible_groups([2, 1], {})
    assert (first.is_certain, first.lower, first.upper, first.candidates) == (True, 2, 3, [1])
    assert (second.is_certain, second.lower, second.upper) == (False, 0, 1)
    (only,) = find_possible_groups([2, 1], {(0, 1): True})
    assert (only.lower, only.upper, only.members) == (3, 3, [1])
    first, second = find_possible_groups([2, 1], {(0, 1): False})
    assert (first.upper, second.is_certain, second.lower) == (2, True, 1)
