import pytest

from trl_rlp.evaluation.win_rates import compare_win_rates, win_rate


def test_win_rate_computed_by_hand():
    """The mean is 2.5 / 4. The differences are .375, -.125, -.625, .375, and their squares sum to .6875."""
    found = win_rate([1.0, 0.5, 0.0, 1.0])
    assert found["win_rate"] == 0.625
    assert (found["wins"], found["draws"], found["losses"], found["prompts"]) == (2, 1, 1, 4)
    assert found["standard_error"] == pytest.approx((0.6875 / 3) ** 0.5 / 2)
    low, high = found["interval"]
    assert 0 <= low < 0.625 < high <= 1


def test_probabilities_are_not_rounded():
    found = win_rate([0.75, 0.25, 0.75])
    assert found["win_rate"] == pytest.approx(1.75 / 3)
    assert (found["wins"], found["draws"], found["losses"]) == (2, 0, 1)


def test_one_prompt_has_no_interval():
    assert win_rate([1.0]) | {"wins": 0} == {
        "win_rate": 1.0,
        "standard_error": None,
        "interval": None,
        "wins": 0,
        "draws": 0,
        "losses": 0,
        "prompts": 1,
    }


def test_paired_comparison_computed_by_hand():
    """The first policy is better by 1/2 on one of four prompts. The difference and its standard error are 1/8."""
    first, second = [1.0, 1.0, 0.0, 0.5], [1.0, 1.0, 0.0, 0.0]
    found = compare_win_rates(first, second)
    assert (found["difference"], found["prompts"]) == (0.125, 4)
    assert found["standard_error"] == pytest.approx(0.125)
    assert found["interval"][0] == 0
    assert compare_win_rates(second, first)["difference"] == -0.125
    assert compare_win_rates([1.0], [0.0])["interval"] is None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: win_rate([]), "`preferences` is empty"),
        (lambda: win_rate([0.5, 1.5]), r"`preferences` row 1 is 1.5, but a preference is in \[0, 1\]"),
        (lambda: win_rate([float("nan")]), "`preferences` row 0 is nan"),
        (lambda: compare_win_rates([1.0], [1.0, 0.0]), "`first` has 1 preferences and `second` 2"),
        (lambda: compare_win_rates([1.0], [2.0]), "`second` row 0 is 2.0"),
    ],
)
def test_invalid_preferences_raise_an_error(call, match):
    with pytest.raises(ValueError, match=match):
        call()
