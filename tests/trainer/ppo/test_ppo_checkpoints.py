import pytest
import torch

from tests.ppo_runs import ppo_config
from trl_rlp.losses.ppo import masked_moments
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState


def moments(*values: float) -> torch.Tensor:
    scores = torch.tensor(values)[:, None]
    return masked_moments(scores, torch.ones_like(scores, dtype=torch.bool))


def test_statistics_are_those_of_all_scores_of_all_processes():
    state = PPOState(0.1)
    state.add_scores(torch.stack([moments(1.0, 5.0), moments(3.0)]))
    deviation = state.add_scores(torch.stack([moments(-2.0), moments(8.0, 0.0, 2.0)]))
    everything = torch.tensor([1.0, 5.0, 3.0, -2.0, 8.0, 0.0, 2.0])
    assert deviation == pytest.approx(everything.std(unbiased=False).item(), rel=1e-6)
    assert (state.score_count, state.score_mean) == (7, pytest.approx(everything.mean().item()))


def test_equal_scores_have_no_deviation_to_divide_by():
    assert PPOState(0.1).add_scores(moments(2.0, 2.0)[None]) == 1.0


def test_before_any_finite_score_nothing_is_divided():
    state = PPOState(0.1)
    assert state.add_scores(moments()[None]) == 1.0 and state.score_count == 0


def test_an_adaptive_weight_follows_its_target(tmp_path):
    """Four completions a rollout, horizon 100: an error clipped to .2 moves it by .2 * 4 / 100."""
    args = ppo_config(tmp_path, adaptive_kl=True, kl_target=2.0, kl_horizon=100)
    args.batch_size = 4
    state = PPOState(0.1)
    state.adapt_kl_coef(10.0, args)
    assert state.kl_coef == pytest.approx(0.1 * 1.008)
    state.adapt_kl_coef(0.0, args)
    assert state.kl_coef == pytest.approx(0.1 * 1.008 * 0.992)


def test_a_fixed_weight_stays(tmp_path):
    state = PPOState(0.1)
    state.adapt_kl_coef(10.0, ppo_config(tmp_path))
    assert state.kl_coef == 0.1


def test_it_is_read_as_it_was_written(tmp_path):
    state = PPOState(0.1, 3, 12.0, 0.1, 7.3, 2, 1)
    state.save(tmp_path)
    again = PPOState(0.5)
    again.restore(tmp_path)
    assert again == state


def test_a_folder_without_it_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no ppo_state.json, so it was not written by this trainer"):
        PPOState(0.1).restore(tmp_path)


def test_a_run_with_other_rollouts_is_named(tmp_path):
    PPOState(0.1, steps_per_rollout=4).save(tmp_path)
    with pytest.raises(ValueError, match="is of a run with 4 optimizer steps per rollout, but this run has 2"):
        PPOState(0.1, steps_per_rollout=2).restore(tmp_path)
