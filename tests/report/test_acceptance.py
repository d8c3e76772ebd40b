from trl_rlp.report.acceptance import THRESHOLDS, find_right_sides, sweep_thresholds


def test_curves_are_those_of_four_prompts():
    """
    Confidences 1, 0.75, 0.5 and between 0.25 and 0.45. At γ = 0.5 three of four prompts are accepted, at 0.75 two, at
    0.8 one. At 0.3 it is three or four. Of the three pairs, the first has no right side. At 0.5 the others decide: one
    right, one wrong. At 0.75 only the right one is left.
    """
    sides = [(False, False), (True, False), (False, True)]
    curves = sweep_thresholds([1.0, 0.75, 0.5, 0.25], [1.0, 0.75, 0.5, 0.45], [1.0, 0.75, 0.5], sides)
    at = {threshold: index for index, threshold in enumerate(THRESHOLDS)}
    assert [curves.lowest[at[gamma]] for gamma in (0.0, 0.3, 0.5, 0.75, 0.8)] == [1.0, 0.75, 0.75, 0.5, 0.25]
    assert [curves.highest[at[gamma]] for gamma in (0.3, 0.5)] == [1.0, 0.75]
    assert [curves.pairs[at[gamma]] for gamma in (0.5, 0.75, 0.8)] == [3, 2, 1]
    assert [curves.decided[at[gamma]] for gamma in (0.5, 0.75, 0.8)] == [2, 1, 0]
    assert [curves.accuracy[at[gamma]] for gamma in (0.5, 0.75, 0.8)] == [0.5, 1.0, None]


def test_without_answers_no_pair_is_decided():
    curves = sweep_thresholds([1.0], [1.0], [1.0])
    assert set(curves.decided) == {0} and set(curves.accuracy) == {None}
    assert set(sweep_thresholds([], [], []).lowest) == {0.0}


def test_sides_are_compared_with_the_answers_as_text_and_as_messages():
    pairs = [
        {"chosen": "Paris.", "rejected": "London"},
        {"chosen": [{"role": "assistant", "content": "5"}], "rejected": [{"role": "assistant", "content": "4"}]},
    ]
    assert find_right_sides(pairs, [["paris", "City of Light"], "4"]) == [(True, False), (False, True)]
