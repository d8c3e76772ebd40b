"""Arguments of the PPO trainer that do not fit are refused before any work."""

import pytest
from datasets import Dataset
from peft import PromptTuningConfig

from tests.ppo_runs import ppo_trainer, prompts
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer


ERRORS = {
    "policy as reference": (
        lambda: (lambda model: {"model": model, "ref_model": model})(tiny_causal_lm(tiny_tokenizer())),
        "`model` and `ref_model` are the same object",
    ),
    "labels of the reward model": (
        lambda: {"reward_model": tiny_reward_model(tiny_tokenizer(), num_labels=2)},
        "`reward_model` has `num_labels`=2",
    ),
    "labels of the value model": (
        lambda: {"value_model": tiny_reward_model(tiny_tokenizer(), num_labels=2)},
        "`value_model` has `num_labels`=2",
    ),
    "no reward": (lambda: {"reward_model": None}, "`reward_model` is None and there are no `reward_funcs`"),
    "stop token outside the vocabulary": (
        lambda: {"stop_token_id": 9999},
        "`stop_token_id`=9999 is outside the policy's vocabulary",
    ),
    "too few prompts": (lambda: {"data": prompts(3)}, "`train_dataset` has 3 prompts, but a rollout needs 4"),
    "too long prompt": (
        lambda: {"data": Dataset.from_dict({"input_ids": [[40] * 510] * 8})},
        "`train_dataset` row 0 has 510 tokens, but the policy's context leaves only 506",
    ),
    "token outside the vocabulary": (
        lambda: {"data": Dataset.from_dict({"input_ids": [[9999]] * 8})},
        "`train_dataset` row 0 contains token id 9999, outside the policy's embedding",
    ),
    "no column of prompts": (
        lambda: {"data": Dataset.from_dict({"text": ["a"] * 8})},
        "`train_dataset` lacks a column `prompt`",
    ),
    "reward model as value model": (
        lambda: (lambda model: {"reward_model": model, "value_model": model})(tiny_reward_model(tiny_tokenizer())),
        "`value_model` is also the policy, the reference policy or the reward model",
    ),
    "labels of a model in reward_funcs": (
        lambda: {"reward_funcs": [tiny_reward_model(tiny_tokenizer(), num_labels=2)]},
        "A model of `reward_funcs` has `num_labels`=2",
    ),
    "unknown adapter": (
        lambda: {"ref_adapter_name": "two"},
        "`ref_adapter_name`='two' is not one of the policy's adapters",
    ),
    "virtual tokens": (
        lambda: {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)},
        "uses virtual tokens",
    ),
    "standardized rewards of a stream": (
        lambda: {"data": Dataset.from_dict({"prompt": ["a"] * 8}).to_iterable_dataset(), "standardize_rewards": True},
        "`train_dataset` is a stream. `standardize_rewards` cannot sample it in advance",
    ),
}


@pytest.mark.parametrize("build_arguments, match", ERRORS.values(), ids=ERRORS)
def test_arguments_that_do_not_fit_are_refused(tmp_path, build_arguments, match):
    with pytest.raises(ValueError, match=match):
        ppo_trainer(tmp_path, **build_arguments())


def test_collator_that_does_more_than_padding_causes_a_warning(tmp_path, caplog):
    ppo_trainer(tmp_path, data_collator=lambda rows: rows)
    assert "`data_collator` (`function`) is not used" in caplog.text
