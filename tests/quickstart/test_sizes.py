import pytest
import torch

from trl_rlp.quickstart.sizes import (
    SHRINKING,
    Sizes,
    algorithm_seconds,
    demonstration_seconds,
    fastest_threads,
    fit,
    preference_seconds,
    shrink,
)


def test_the_default_work_fits_ten_minutes_on_two_free_cores():
    rebuilding_the_model = 30
    total = demonstration_seconds(Sizes()) + preference_seconds(Sizes()) + algorithm_seconds(Sizes())
    assert total + rebuilding_the_model < 0.9 * 600


def test_shrinking_keeps_what_the_method_fixes():
    half = shrink(Sizes(), 0.5)
    assert (half.unlabeled_questions, half.policy_rollouts) == (52, 3)
    assert (half.num_generations, half.reward_epochs, half.demonstrations) == (10, 3, 72)
    smallest = shrink(Sizes(), 0.0)
    assert {name: vars(smallest)[name] for name in SHRINKING} == SHRINKING
    assert shrink(Sizes(policy_rollouts=1), 0.5).policy_rollouts == 1  # never more than was asked for
    assert shrink(Sizes(), 1.0) == Sizes()


def test_fit_takes_the_largest_share_that_fits():
    """One second a question: 105 at a slowdown of 2 are 210 s; 100 s hold 50, which is a share of .45 (47)."""
    sizes, share = fit(Sizes(), 100, 2.0, lambda plan: plan.unlabeled_questions)
    assert (share, sizes.unlabeled_questions) == (0.45, 47)
    assert fit(Sizes(), 1000, 2.0, lambda plan: plan.unlabeled_questions) == (Sizes(), 1.0)
    assert fit(Sizes(), -5, 1.0, lambda plan: 1.0) == (shrink(Sizes(), 0.05), 0.05)


@pytest.mark.parametrize("seconds", [preference_seconds, algorithm_seconds])
def test_less_work_takes_less_time(seconds):
    assert seconds(shrink(Sizes(), 0.5)) < seconds(Sizes())


def test_threads_are_measured_and_left_as_they_were():
    before = torch.get_num_threads()
    assert fastest_threads(repeats=1) in (1, before)
    assert torch.get_num_threads() == before
