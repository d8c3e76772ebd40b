from types import SimpleNamespace

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, RLOOConfig

from trl_rlp.trainer.callbacks.run_checks import require_modes, require_scores
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


def configure(config_class, folder, **settings):
    return config_class(str(folder), bf16=False, use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("config_class", [GRPOConfig, RLOOConfig, PPOConfig, TrainingArguments])
def test_only_an_evaluation_with_the_continuous_batching_of_trl_is_refused(tmp_path, config_class):
    batching = {} if config_class is TrainingArguments else {"use_transformers_continuous_batching": True}
    evaluation = {"eval_strategy": "steps", "eval_steps": 1}
    require_modes(configure(config_class, tmp_path, **batching))
    require_modes(configure(config_class, tmp_path, **evaluation))
    both = configure(config_class, tmp_path, **batching, **evaluation)
    if config_class not in (GRPOConfig, RLOOConfig):
        return require_modes(both)
    with pytest.raises(ValueError, match="would count as a rollout. Set it to False, or `eval_strategy` to 'no'"):
        require_modes(both)


@pytest.mark.parametrize(
    ("config_class", "settings", "last"),
    [
        (TrainingArguments, {}, 1),
        (GRPOConfig, {"num_iterations": 3}, 3),
        (GRPOConfig, {"steps_per_generation": 6, "gradient_accumulation_steps": 2, "num_iterations": 2}, 6),
        (PPOConfig, {"num_ppo_epochs": 2, "num_mini_batches": 2, "gradient_accumulation_steps": 2}, 4),
    ],
)
def test_a_reward_without_scores_is_refused_after_as_many_steps_as_a_rollout_lasts(
    tmp_path, config_class, settings, last
):
    args = configure(config_class, tmp_path, **settings)
    for num_rollouts, num_steps in ((2, last - 1), (3, last)):
        require_scores(SimpleNamespace(num_rollouts=num_rollouts), 2, num_steps, args)
    with pytest.raises(ValueError, match="`reward` scored nothing in the first rollout of the run. Pass the same"):
        require_scores(SimpleNamespace(num_rollouts=2), 2, last, args)
