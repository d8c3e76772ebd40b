"""Metrics of a rollout, computed by hand."""

import pytest
import torch

from tests.trainer.ppo.test_experience import make_experience
from trl_rlp.trainer.ppo.ppo_log import ROLLOUT_METRICS, add_ratio_variance, critic_metrics, objective_metrics


MASK = torch.tensor([[True, True], [True, False]])


def test_objective_and_its_parts():
    """
    The two completions have KL divergences of 3 and 1, so the mean is 2. Their KL rewards are -0.6 and -0.2, their
    entropies 3 and 1, and their scores 1 and 2.
    """
    experience = make_experience(
        old_log_probs=torch.tensor([[-1.0, -2.0], [-1.0, -99.0]]),
        kl=torch.tensor([[1.0, 2.0], [1.0, 0.0]]),
        kl_rewards=torch.tensor([[-0.2, -0.4], [-0.2, 0.0]]),
        completion_mask=MASK,
        scores=torch.tensor([1.0, 2.0]),
        finished=torch.tensor([True, False]),
    )
    metrics = objective_metrics(experience)
    values = {name: pytest.approx(value.item()) for name, value in metrics.items()}
    assert values == {
        "objective/kl": 2.0,
        "objective/entropy": 2.0,
        "objective/non_score_reward": -0.4,
        "objective/scores": 1.5,
        "objective/rlhf_reward": 1.1,
        "val/num_eos_tokens": 1.0,
    }


@pytest.mark.parametrize("values, expected", [([1.0, 2.0, 6.0], 1.0), ([3.0, 3.0, 3.0], 0.0), ([5.0, 4.0, 0.0], -3.0)])
def test_explained_variance_compares_the_critic_with_the_mean(values, expected):
    """
    Returns 1, 2, 6 have the variance 14 / 3. Values 5, 4, 0 have the errors -4, -2, 6 with the variance 56 / 3. The
    explained variance is 1 - 4 = -3.
    """
    experience = make_experience(
        old_values=torch.tensor([values[:2], [values[2], 9.0]]),
        returns=torch.tensor([[1.0, 2.0], [6.0, -9.0]]),
        value_mask=MASK,
    )
    metrics = critic_metrics(experience)
    assert metrics["val/explained_variance"].item() == pytest.approx(expected)
    assert metrics["val/returns"].item() == pytest.approx(3.0)
    assert set(metrics) < set(ROLLOUT_METRICS)


def test_mean_of_squared_ratios_becomes_their_variance():
    """The ratios 1 and 3 have the mean 2 and the unbiased variance 2."""
    sums = {"val/ratio": (4.0, 2.0), "val/ratio_squared": (10.0, 2.0), "loss/policy_avg": (0.0, 0.0)}
    assert add_ratio_variance(sums) == {"val/ratio": 2.0, "val/ratio_var": 2.0}
