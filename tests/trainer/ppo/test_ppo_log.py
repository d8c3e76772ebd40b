import pytest
import torch

from tests.trainer.ppo.test_rollout import experience
from trl_rlp.trainer.ppo.ppo_log import ROLLOUT_METRICS, add_ratio_variance, critic_metrics, objective_metrics


MASK = torch.tensor([[True, True], [True, False]])


def test_the_objective_and_its_parts():
    """KL: 3 and 1, so 2 on the mean; KL rewards -.6 and -.2; entropies 3 and 1; scores 1 and 2."""
    rollout = experience(
        old_log_probs=torch.tensor([[-1.0, -2.0], [-1.0, -99.0]]),
        kl=torch.tensor([[1.0, 2.0], [1.0, 0.0]]),
        kl_rewards=torch.tensor([[-0.2, -0.4], [-0.2, 0.0]]),
        completion_mask=MASK,
        scores=torch.tensor([1.0, 2.0]),
        finished=torch.tensor([True, False]),
    )
    terms = objective_metrics(rollout)
    values = {name: pytest.approx(value.item()) for name, value in terms.items()}
    assert values == {
        "objective/kl": 2.0,
        "objective/entropy": 2.0,
        "objective/non_score_reward": -0.4,
        "objective/scores": 1.5,
        "objective/rlhf_reward": 1.1,
        "val/num_eos_tokens": 1.0,
    }


@pytest.mark.parametrize("values, expected", [([1.0, 2.0, 6.0], 1.0), ([3.0, 3.0, 3.0], 0.0), ([5.0, 4.0, 0.0], -3.0)])
def test_the_critic_is_measured_against_the_mean(values, expected):
    """Returns 1, 2, 6; variance 14 / 3. Values 5, 4, 0 miss by -4, -2, 6, of variance 56 / 3: 1 - 4 = -3."""
    rollout = experience(
        old_values=torch.tensor([values[:2], [values[2], 9.0]]),
        returns=torch.tensor([[1.0, 2.0], [6.0, -9.0]]),
        value_mask=MASK,
    )
    terms = critic_metrics(rollout)
    assert terms["val/explained_variance"].item() == pytest.approx(expected)
    assert terms["val/returns"].item() == pytest.approx(3.0)
    assert set(terms) < set(ROLLOUT_METRICS)


def test_squares_of_ratios_become_their_variance():
    """Ratios 1 and 3: mean 2, unbiased variance 2."""
    sums = {"val/ratio": (4.0, 2.0), "val/ratio_squared": (10.0, 2.0), "loss/policy_avg": (0.0, 0.0)}
    assert add_ratio_variance(sums) == {"val/ratio": 2.0, "val/ratio_var": 2.0}
