import random

import pytest

from trl_rlp.data.groups.group_search import possible_groups, search_groups


def leader_loop(weights, relation):
    """The plain loop: each output is compared with the leaders in order, joins the first that fits or leads."""
    groups = []
    for item in range(len(weights)):
        home = next((group for group in groups if relation[group[0], item]), None)
        groups.append([item]) if home is None else home.append(item)
    return groups


def run(weights, relation, needed, complete_groups=False):
    """Answers a search from a table; returns its result and every pair that it asked, in order."""
    search, answers, asked = search_groups(weights, needed, complete_groups), None, []
    while True:
        try:
            pairs = search.send(answers)
        except StopIteration as end:
            return end.value, asked
        assert pairs and all(earlier < later for earlier, later in pairs)
        asked += pairs
        answers = [relation[pair] for pair in pairs]


def random_case(generator):
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
def test_decision_and_largest_group_are_those_of_the_plain_loop(seed):
    """Random relations, transitive or not, with weights; every weight that can be needed."""
    generator = random.Random(seed)
    for _ in range(400):
        weights, relation = random_case(generator)
        expected = leader_loop(weights, relation)
        sizes = [sum(weights[item] for item in group) for group in expected]
        for needed in range(1, sum(weights) + 3):
            groups, asked = run(weights, relation, needed)
            assert len(asked) == len(set(asked)), "no pair is asked twice"
            best = max(groups, key=lambda group: group.lower)
            assert (best.lower >= needed) == (max(sizes) >= needed)
            assert best.lower <= max(sizes) <= max(group.upper for group in groups)
            if max(sizes) >= needed:
                assert [best.leader, *best.members] == expected[sizes.index(max(sizes))]
                assert best.upper == best.lower and not best.candidates
            for group in groups:
                if group.is_certain:
                    true = next(other for other in expected if other[0] == group.leader)
                    assert set(group.members) <= set(true)


@pytest.mark.parametrize("seed", range(2))
def test_complete_groups_are_those_of_the_plain_loop_at_no_more_pairs(seed):
    generator = random.Random(seed)
    for _ in range(500):
        weights, relation = random_case(generator)
        expected = leader_loop(weights, relation)
        groups, asked = run(weights, relation, generator.randrange(1, 9), complete_groups=True)
        assert [[group.leader, *group.members] for group in groups] == expected
        pairs_of_the_loop = {
            (group[0], item) for item in range(len(weights)) for group in expected if group[0] < item
        } - {
            (later[0], item)
            for place, group in enumerate(expected)
            for item in group
            for later in expected[place + 1 :]
        }
        assert set(asked) == pairs_of_the_loop and len(asked) == len(set(asked))


def all_different(count):
    return {(a, b): False for b in range(count) for a in range(b)}


def test_one_output_or_one_heavy_group_needs_little():
    assert run([5], {}, 3)[1] == []
    assert run([], {}, 1) == ([], [])
    # Seven of ten say the same; three others decide nothing but whether they belong to it.
    relation = {(0, 1): False, (0, 2): True, (0, 3): False}
    assert run([7, 1, 1, 1], {**all_different(4), **relation}, 5)[1] == [(0, 1), (0, 2), (0, 3)]


def test_rejection_stops_within_a_row():
    """Four different outputs of one each, three needed. The first row may lose one and stands at 3, so two misses end
    it; the second row has three outputs left and ends after one; the third cannot reach three. A loop asks six."""
    assert run([1, 1, 1, 1], all_different(4), 3)[1] == [(0, 1), (0, 2), (1, 2)]
    # All four needed: one miss is enough.
    assert run([1, 1, 1, 1], all_different(4), 4)[1] == [(0, 1)]


def test_heavy_outputs_come_first():
    """Weights 1, 1, 4 of 6, four needed: 0 is compared with the heavy 2 and cannot win. 1 likewise. 2 has enough by
    itself, and whether 0 and 1 belong together no longer matters."""
    assert run([1, 1, 4], all_different(3), 4)[1] == [(0, 2), (1, 2)]


def test_of_equal_groups_the_first_opened_wins_and_a_later_one_cannot_catch_up():
    relation = {**all_different(4), (0, 2): True, (1, 3): True}
    groups, asked = run([1, 1, 1, 1], relation, 2)
    assert [groups[0].leader, *groups[0].members] == [0, 2]
    assert (1, 3) not in asked


def test_an_earlier_group_keeps_what_it_takes():
    """2 matches both leaders: the plain loop gives it to 0, although 1 is heavier."""
    relation = {(0, 1): False, (0, 2): True, (1, 2): True}
    groups, _ = run([1, 2, 1], relation, 2)
    assert [groups[0].leader, *groups[0].members] == [0, 2]


def test_what_is_known_before_and_after_a_comparison():
    first, second = possible_groups([2, 1], {})
    assert (first.is_certain, first.lower, first.upper, first.candidates) == (True, 2, 3, [1])
    assert (second.is_certain, second.lower, second.upper) == (False, 0, 1)
    (only,) = possible_groups([2, 1], {(0, 1): True})
    assert (only.lower, only.upper, only.members) == (3, 3, [1])
    first, second = possible_groups([2, 1], {(0, 1): False})
    assert (first.upper, second.is_certain, second.lower) == (2, True, 1)
