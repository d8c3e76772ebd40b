import numpy as np
import pytest

from trl_rlp.evaluation.intervals import bootstrap_interval, seed_interval
from trl_rlp.evaluation.reward_metrics import standard_error


def test_standard_error_computed_by_hand():
    """The squared differences of 1, 2, 3, 4 from 2.5 are 2.25, .25, .25, 2.25 with sum 5. So it is √(5/3) / √4."""
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5 / 2)
    assert standard_error([1.0]) is None and standard_error([]) is None


def test_seed_interval_computed_by_hand():
    """1, 2, 3 have mean 2 and standard error 1 / √3. t(.975) with two degrees of freedom is 4.30265."""
    found = seed_interval([1.0, 2.0, 3.0])
    half_width = 4.30265 / 3**0.5
    assert found["mean"] == 2 and found["seeds"] == 3
    assert (found["low"], found["high"]) == pytest.approx((2 - half_width, 2 + half_width), abs=1e-4)
    assert seed_interval([0.0, 2.0], level=0.5)["high"] == pytest.approx(2.0)  # t(.75) with one degree of freedom is 1


def test_bootstrap_interval_of_a_coin_is_binomial():
    """Resampled means of 100 in 200 have standard deviation √(.25 / 200) = .0354. 95% are within 1.96 of them."""
    values = [0.0, 1.0] * 100
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((0.5 - 0.0693, 0.5 + 0.0693), abs=0.006)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < 0.5 < narrow[1] < high


def test_the_seed_determines_the_resampling():
    values = [0.1, 0.25, 0.7, 1.9, 2.3, 4.7, 5.1]
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)


def test_intervals_have_the_expected_coverage():
    assert bootstrap_interval([0.5] * 4) == (0.5, 0.5)
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(300, 40))
    covered = [low < 0 < high for low, high in (bootstrap_interval(row, resamples=500) for row in samples)]
    assert 0.9 < np.mean(covered) < 0.98
    covered = [found["low"] < 0 < found["high"] for found in map(seed_interval, samples[:, :5])]
    assert 0.91 < np.mean(covered) < 0.99


def test_values_of_one_prompt_are_resampled_together():
    """Ten prompts with ten equal values each have the interval of ten values, not of a hundred."""
    values = np.repeat([0.0, 1.0] * 5, 10)
    prompts = np.repeat(np.arange(10), 10)
    assert bootstrap_interval(values, groups=prompts) == bootstrap_interval([0.0, 1.0] * 5)
    with pytest.raises(ValueError, match="at least two prompts, got 1"):
        bootstrap_interval([0.0, 1.0], groups=["a", "a"])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bootstrap_interval([1.0, float("nan")]), "Value 1 of the prompts is nan, so there"),
        (lambda: seed_interval([float("nan"), 1.0]), "Value 0 of the seeds is nan, so there"),
        (lambda: seed_interval([1.0, float("inf")]), "Value 1 of the seeds is inf, so there"),
        (lambda: bootstrap_interval([1.0, 2.0], groups=["a"]), "`groups` has 1 entries for 2 values"),
        (lambda: seed_interval([1.0]), "An interval needs at least two seeds, got 1"),
        (lambda: bootstrap_interval([]), "An interval needs at least two prompts, got 0"),
        (lambda: seed_interval([1.0, 2.0], level=1.0), r"`level` must be in \(0, 1\), got 1.0"),
    ],
)
def test_invalid_input_raises_an_error(call, match):
    with pytest.raises(ValueError, match=match):
        call()
