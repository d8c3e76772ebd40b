import pytest
import torch

from trl_rlp.quickstart.sizes import (
    MINIMUM_SIZES,
    Sizes,
    estimate_algorithm_seconds,
    estimate_demonstration_seconds,
    estimate_preference_seconds,
    find_fastest_threads,
    fit_sizes,
    shrink_sizes,
)


def test_the_default_work_fits_ten_minutes_on_two_free_cores():
    converting_the_model = 30
    estimates = (estimate_demonstration_seconds, estimate_preference_seconds, estimate_algorithm_seconds)
    assert sum(estimate(Sizes()) for estimate in estimates) + converting_the_model < 0.9 * 600


def test_shrinking_keeps_the_sizes_of_the_method_and_the_minimum():
    half = shrink_sizes(Sizes(), 0.5)
    assert (half.unlabeled_questions, half.policy_rollouts) == (52, 3)
    assert (half.num_generations, half.reward_epochs, half.demonstrations) == (10, 3, 72)
    smallest = shrink_sizes(Sizes(), 0.0)
    assert {name: vars(smallest)[name] for name in MINIMUM_SIZES} == MINIMUM_SIZES
    assert shrink_sizes(Sizes(policy_rollouts=1), 0.5).policy_rollouts == 1  # never more than before
    assert shrink_sizes(Sizes(), 1.0) == Sizes()


def test_fit_finds_the_largest_share_that_fits():
    """At one second per question and a slowdown of 2, 105 questions take 210 s. 50 fit into 100 s: share .45 (47)."""
    sizes, share = fit_sizes(Sizes(), 100, 2.0, lambda plan: plan.unlabeled_questions)
    assert (share, sizes.unlabeled_questions) == (0.45, 47)
    assert fit_sizes(Sizes(), 1000, 2.0, lambda plan: plan.unlabeled_questions) == (Sizes(), 1.0)
    assert fit_sizes(Sizes(), -5, 1.0, lambda plan: 1.0) == (shrink_sizes(Sizes(), 0.05), 0.05)


@pytest.mark.parametrize("estimate", [estimate_preference_seconds, estimate_algorithm_seconds])
def test_less_work_takes_less_time(estimate):
    assert estimate(shrink_sizes(Sizes(), 0.5)) < estimate(Sizes())


def test_finding_the_fastest_threads_leaves_the_setting_unchanged():
    before = torch.get_num_threads()
    assert find_fastest_threads(repeats=1) in (1, before)
    assert torch.get_num_threads() == before
