import pytest

from trl_rlp.evaluation.alpaca_eval import leaderboard_row
from trl_rlp.evaluation.annotation_report import compare_annotations, describe_annotations, describe_win_rates
from trl_rlp.evaluation.length_control import length_controlled_win_rate
from trl_rlp.evaluation.win_rates import win_rate


def build_annotations(preferences, reference="reference"):
    return [
        {"instruction": f"{number}?", "output_1": reference, "output_2": "answer " * number, "preference": value}
        for number, value in enumerate(preferences)
    ]


def test_missing_preferences_are_counted():
    found = describe_annotations(build_annotations([2, 1, None, 1.5, 2, 1, 1]))
    assert found["missing"] == 1 and found["prompts"] == 6
    assert found.items() >= win_rate([1, 0, 0.5, 1, 0, 0]).items()
    assert found["alpaca_eval"] == leaderboard_row(build_annotations([2, 1, None, 1.5, 2, 1, 1]))
    lengths = [7 * number for number in range(7)]
    assert found["length_controlled"] == length_controlled_win_rate([1, 0, None, 0.5, 1, 0, 0], lengths, [9] * 7)
    assert describe_annotations(build_annotations([2, 1, 1]))["length_controlled"] is None


def test_two_policies_are_compared_on_instructions_with_both_preferences():
    """Three instructions remain: 1 - 0, 0 - 0, 1/2 - 1. The mean of 1, 0, -1/2 is 1/6."""
    found = compare_annotations(build_annotations([2, 1, None, 1.5]), build_annotations([1, 1, 2, 2])[::-1])
    assert found["difference"] == pytest.approx(1 / 6) and (found["prompts"], found["missing"]) == (3, 1)


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (build_annotations([1, 1]), "have different instructions: 1 are in one file only, such as '2"),
        ([*build_annotations([1, 1]), build_annotations([1])[0]], "have different instructions: 1 are"),
        ([*build_annotations([1, 1, 1]), build_annotations([1])[0]], "0 are in one file only, or some appear twice"),
        (build_annotations([1, 1, 1], "another"), "compared with different reference outputs on '0"),
        (build_annotations([None, None, None]), "No instruction has a preference for both policies"),
    ],
)
def test_incomparable_annotations_raise_an_error(second, match):
    with pytest.raises(ValueError, match=match):
        compare_annotations(build_annotations([2, 2, 2]), second)


def test_annotations_without_any_preference_raise_an_error():
    with pytest.raises(ValueError, match=r"None of the 3 annotations has a preference in \[1, 2\] .*\. Judge"):
        describe_annotations(build_annotations([None, 3, float("nan")]))


def test_win_rates_of_one_or_two_policies():
    first, second = build_annotations([2, 1, 1.5]), build_annotations([1, 1, 2])
    assert describe_win_rates([]) == {}
    assert describe_win_rates([first]) == {"win_rate": describe_annotations(first)}
    assert describe_win_rates([first, second]) == {
        "win_rate": describe_annotations(first),
        "other_win_rate": describe_annotations(second),
        "comparison": compare_annotations(first, second),
    }
