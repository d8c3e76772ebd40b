import pytest

from trl_rlp.quickstart.sizes import (
    ESTIMATES,
    LIMITS,
    MINIMUM_SIZES,
    OPEN_SIZES,
    Sizes,
    estimate_remaining_seconds,
    fit_sizes,
    shrink_sizes,
)


def test_the_default_work_fits_ten_minutes_on_two_free_cores():
    imports, converting_the_model = 10, 30
    assert estimate_remaining_seconds("sft", Sizes()) + imports + converting_the_model < 0.9 * 600


def test_the_smallest_work_fits_ten_minutes_at_a_third_of_the_speed():
    imports, converting_the_model = 10, 30
    smallest = estimate_remaining_seconds("sft", shrink_sizes(Sizes(), 0.0))
    assert 3 * (smallest + imports + converting_the_model) < 0.9 * 600


def test_the_remaining_time_is_the_sum_of_the_stages_that_are_left():
    """Two rollouts of ten completions: 2 + .31 * 20 = 8.2 s. The evaluation is the only later stage."""
    sizes = Sizes(retrained_policy_rollouts=2, completions_per_rollout=10)
    assert ESTIMATES["retrained_policy"](sizes) == pytest.approx(8.2)
    left = estimate_remaining_seconds("retrained_policy", sizes)
    assert left == pytest.approx(8.2 + ESTIMATES["outcome"](sizes))


def test_shrinking_keeps_the_sizes_of_the_method_and_the_minimum():
    half = shrink_sizes(Sizes(), 0.5)
    assert (half.unlabeled_questions, half.policy_rollouts, half.retrained_policy_rollouts) == (52, 6, 6)
    assert (half.num_generations, half.reward_epochs, half.demonstrations) == (10, 3, 72)
    smallest = shrink_sizes(Sizes(), 0.0)
    assert {name: vars(smallest)[name] for name in MINIMUM_SIZES} == MINIMUM_SIZES
    assert shrink_sizes(Sizes(policy_rollouts=1), 0.5).policy_rollouts == 1  # never more than before
    assert shrink_sizes(Sizes(), 1.0) == Sizes()


@pytest.mark.parametrize("name, limit", LIMITS.items())
def test_a_limited_size_never_exceeds_its_limit(name, limit):
    sizes = shrink_sizes(Sizes(**{limit: MINIMUM_SIZES[limit]}), 0.9)
    assert vars(sizes)[name] == vars(sizes)[limit]


def test_only_open_sizes_shrink_and_only_as_far_as_necessary():
    """
    Before the evaluation, only its questions are open. All 74 take 6 + .034 * 888 + .088 * (96.2 + 51.8) = 49.2 s. At
    a slowdown of 2 that is 98 s. Into 80 s fit 50 questions (70%, 74.5 s): 6 + 20.4 + .088 * (96.2 + 35) = 37.9 s.
    """
    assert fit_sizes("outcome", Sizes(), 100, 2.0) == Sizes()
    fitted = fit_sizes("outcome", Sizes(), 80, 2.0)
    assert fitted == Sizes(evaluation_questions=fitted.evaluation_questions) and fitted.evaluation_questions in (
        52,
        56,
    )
    assert fit_sizes("outcome", Sizes(), -5, 1.0) == Sizes(evaluation_questions=16)


def test_the_retrained_policy_gets_fewer_rollouts_than_the_first_only_if_nothing_else_helps():
    """Before step 5, all work takes 121.0 + 49.2 s. With 16 evaluated questions it takes 121.0 + 20.9 s."""
    assert fit_sizes("retrained_policy", Sizes(), 150, 1.0).retrained_policy_rollouts == 12
    fitted = fit_sizes("retrained_policy", Sizes(), 110, 1.0)
    assert (fitted.policy_rollouts, fitted.retrained_policy_rollouts) == (12, 8)
    fitted = fit_sizes("policy", Sizes(), 250, 1.0)
    assert fitted.policy_rollouts == fitted.retrained_policy_rollouts < 12


@pytest.mark.parametrize("stage", OPEN_SIZES)
def test_less_work_takes_less_time(stage):
    smaller = shrink_sizes(Sizes(), 0.5, OPEN_SIZES[stage])
    assert estimate_remaining_seconds(stage, smaller) < estimate_remaining_seconds(stage, Sizes())
