import pytest

from trl_rlp.evaluation.alpaca_eval import leaderboard_row
from trl_rlp.evaluation.annotation_report import compare_annotations, describe_annotations
from trl_rlp.evaluation.length_control import length_controlled_win_rate
from trl_rlp.evaluation.win_rate import win_rate


def rows(preferences, reference="reference"):
    return [
        {"instruction": f"{number}?", "output_1": reference, "output_2": "answer " * number, "preference": value}
        for number, value in enumerate(preferences)
    ]


def test_entries_without_a_preference_are_counted():
    found = describe_annotations(rows([2, 1, None, 1.5, 2, 1, 1]))
    assert found["missing"] == 1 and found["prompts"] == 6
    assert found.items() >= win_rate([1, 0, 0.5, 1, 0, 0]).items()
    assert found["alpaca_eval"] == leaderboard_row(rows([2, 1, None, 1.5, 2, 1, 1]))
    lengths = [7 * number for number in range(7)]
    assert found["length_controlled"] == length_controlled_win_rate([1, 0, None, 0.5, 1, 0, 0], lengths, [9] * 7)
    assert describe_annotations(rows([2, 1, 1]))["length_controlled"] is None


def test_two_policies_are_compared_on_what_both_were_judged_on():
    """Left: 1 - 0, 0 - 0, 1/2 - 1: mean of 1, 0, -1/2 is 1/6."""
    found = compare_annotations(rows([2, 1, None, 1.5]), rows([1, 1, 2, 2])[::-1])
    assert found["difference"] == pytest.approx(1 / 6) and (found["prompts"], found["missing"]) == (3, 1)


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (rows([1, 1]), "not for the same instructions: 1 are in one file only, such as '2"),
        ([*rows([1, 1]), rows([1])[0]], "not for the same instructions: 1 are"),
        ([*rows([1, 1, 1]), rows([1])[0]], "0 are in one file only, or have some twice"),
        (rows([1, 1, 1], "another"), "compared with different outputs of a reference on '0"),
        (rows([None, None, None]), "no instruction on which both have a preference"),
    ],
)
def test_what_cannot_be_compared_is_named(second, match):
    with pytest.raises(ValueError, match=match):
        compare_annotations(rows([2, 2, 2]), second)


def test_annotations_without_any_preference_are_named():
    with pytest.raises(ValueError, match=r"None of the 3 annotations has a preference from 1 .* to 2\. Judge"):
        describe_annotations(rows([None, 3, float("nan")]))
