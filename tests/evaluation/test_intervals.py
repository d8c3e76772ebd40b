import numpy as np
import pytest

from trl_rlp.evaluation.intervals import bootstrap_interval, seed_interval
from trl_rlp.evaluation.reward_metrics import standard_error


def test_the_standard_error_is_worked_by_hand():
    """Deviations of 1, 2, 3, 4 from 2.5: squares 2.25, .25, .25, 2.25, sum 5, over 3, root, over √4."""
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5 / 2)
    assert standard_error([1.0]) is None and standard_error([]) is None


def test_seeds_get_students_interval():
    """Of 1, 2, 3 the mean is 2, the error 1 / √3, and t(.975) at two degrees of freedom 4.30265."""
    found = seed_interval([1.0, 2.0, 3.0])
    reach = 4.30265 / 3**0.5
    assert found["mean"] == 2 and found["seeds"] == 3
    assert (found["low"], found["high"]) == pytest.approx((2 - reach, 2 + reach), abs=1e-4)
    assert seed_interval([0.0, 2.0], level=0.5)["high"] == pytest.approx(2.0)  # t(.75) at one degree is 1


def test_the_bootstrap_of_a_coin_is_the_binomial_s():
    """100 of 200: resampled means are binomial with deviation √(.25 / 200) = .0354, 95 % within 1.96 of them."""
    values = [0.0, 1.0] * 100
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((0.5 - 0.0693, 0.5 + 0.0693), abs=0.006)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < 0.5 < narrow[1] < high


def test_the_seed_decides_the_draws():
    values = [0.1, 0.25, 0.7, 1.9, 2.3, 4.7, 5.1]
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)


def test_equal_values_have_no_width_and_the_truth_is_held_as_often_as_promised():
    assert bootstrap_interval([0.5] * 4) == (0.5, 0.5)
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(300, 40))
    held = [low < 0 < high for low, high in (bootstrap_interval(row, resamples=500) for row in draws)]
    assert 0.9 < np.mean(held) < 0.98
    held = [found["low"] < 0 < found["high"] for found in map(seed_interval, draws[:, :5])]
    assert 0.91 < np.mean(held) < 0.99


def test_values_of_one_prompt_are_drawn_together():
    """Ten prompts of ten equal values each: as uncertain as ten values, not as a hundred."""
    values = np.repeat([0.0, 1.0] * 5, 10)
    prompts = np.repeat(np.arange(10), 10)
    assert bootstrap_interval(values, groups=prompts) == bootstrap_interval([0.0, 1.0] * 5)
    with pytest.raises(ValueError, match="at least two prompts, got 1"):
        bootstrap_interval([0.0, 1.0], groups=["a", "a"])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bootstrap_interval([1.0, float("nan")]), "Value 1 of the prompts is nan, so"),
        (lambda: seed_interval([float("nan"), 1.0]), "Value 0 of the seeds is nan, so"),
        (lambda: seed_interval([1.0, float("inf")]), "Value 1 of the seeds is inf, so"),
        (lambda: bootstrap_interval([1.0, 2.0], groups=["a"]), "`groups` has 1 entries for 2 values"),
        (lambda: seed_interval([1.0]), "An interval needs at least two seeds, got 1"),
        (lambda: bootstrap_interval([]), "An interval needs at least two prompts, got 0"),
        (lambda: seed_interval([1.0, 2.0], level=1.0), r"`level` must be in \(0, 1\), got 1.0"),
    ],
)
def test_what_has_no_interval_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
