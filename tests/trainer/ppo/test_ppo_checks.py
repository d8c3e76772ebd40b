import pytest
from datasets import Dataset, IterableDataset
from peft import PromptTuningConfig

from tests.ppo_runs import logged, ppo_config, ppo_trainer, prompts
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


def test_a_stream_of_prompts_trains(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": f"{i}:"} for i in range(40)]))
    trainer = ppo_trainer(tmp_path, stream)
    trainer.train()
    assert trainer.state.global_step == 6
    with pytest.raises(ValueError, match="`train_dataset` is a stream of unknown length"):
        ppo_trainer(tmp_path, stream, total_episodes=None)
    with pytest.raises(ValueError, match="`train_dataset` is an empty stream"):
        ppo_trainer(tmp_path, IterableDataset.from_generator(lambda: iter([])))


def test_the_order_of_a_stream_is_that_of_the_data_seed(tmp_path):
    orders = []
    for seeds in ({"data_seed": 1}, {"data_seed": 1, "seed": 7}, {"data_seed": 2}, {"shuffle_dataset": False}):
        trainer = ppo_trainer(tmp_path, prompts().to_iterable_dataset(), **seeds)
        orders.append([row["prompt"] for row in trainer.train_dataset.take(16)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == [*prompts()["prompt"]] * 2


def test_the_run_has_as_many_rollouts_as_were_asked_for(tmp_path):
    assert ppo_trainer(tmp_path, total_episodes=9).args.num_total_batches == 3
    assert ppo_trainer(tmp_path, total_episodes=None, num_train_epochs=2).args.num_total_batches == 4
    assert ppo_trainer(tmp_path, total_episodes=None, max_steps=5).args.num_total_batches == 5


ERRORS = {
    "one object": (
        lambda: (lambda model: {"model": model, "ref_model": model})(tiny_causal_lm(tiny_tokenizer())),
        "`model` and `ref_model` are the same object",
    ),
    "reward labels": (
        lambda: {"reward_model": tiny_reward_model(tiny_tokenizer(), num_labels=2)},
        "`reward_model` has `num_labels`=2",
    ),
    "value labels": (
        lambda: {"value_model": tiny_reward_model(tiny_tokenizer(), num_labels=2)},
        "`value_model` has `num_labels`=2",
    ),
    "no reward": (lambda: {"reward_model": None}, "`reward_model` is None and there are no `reward_funcs`"),
    "stop token": (lambda: {"stop_token_id": 9999}, "`stop_token_id`=9999 is outside the policy's vocabulary"),
    "few prompts": (lambda: {"data": prompts(3)}, "`train_dataset` has 3 prompts, but a rollout needs 4"),
    "long ids": (
        lambda: {"data": Dataset.from_dict({"input_ids": [[40] * 510] * 8})},
        "`train_dataset` row 0 has 510 tokens, but the policy's context leaves 506",
    ),
    "foreign ids": (
        lambda: {"data": Dataset.from_dict({"input_ids": [[9999]] * 8})},
        "`train_dataset` row 0 contains token id 9999, outside the policy's embedding",
    ),
    "no column": (lambda: {"data": Dataset.from_dict({"text": ["a"] * 8})}, "`train_dataset` lacks a column `prompt`"),
    "reward as critic": (
        lambda: (lambda model: {"reward_model": model, "value_model": model})(tiny_reward_model(tiny_tokenizer())),
        "`value_model` is also the policy, the reference policy or the reward model",
    ),
    "labels of a further source": (
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
    "standardized stream": (
        lambda: {"data": Dataset.from_dict({"prompt": ["a"] * 8}).to_iterable_dataset(), "standardize_rewards": True},
        "`train_dataset` is a stream, which `standardize_rewards` cannot sample",
    ),
}


@pytest.mark.parametrize("make, match", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_named_before_any_work(tmp_path, make, match):
    with pytest.raises(ValueError, match=match):
        ppo_trainer(tmp_path, **make())


def test_without_a_stop_token_completions_go_on_whatever_the_model_s_own_config_says(tmp_path):
    model = tiny_causal_lm(tiny_tokenizer())
    model.generation_config.eos_token_id = list(range(len(tiny_tokenizer())))
    model.generation_config.suppress_tokens = list(range(50))
    trainer = ppo_trainer(tmp_path, model=model, stop_token=None, eval_dataset=prompts(2), num_sample_generations=1)
    trainer.train()
    assert [row["completions/mean_length"] for row in logged(trainer)[:3]] == [6, 6, 6]
    assert len(model.generation_config.suppress_tokens) == 50


def test_prompts_are_needed(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is None. Pass prompts"):
        PPOTrainer(
            ppo_config(tmp_path),
            tiny_tokenizer(),
            tiny_causal_lm(tiny_tokenizer()),
            reward_model=tiny_reward_model(tiny_tokenizer()),
        )


def test_what_counts_rollouts_becomes_optimizer_steps(tmp_path):
    settings = {"eval_dataset": prompts(2), "eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2}
    trainer = ppo_trainer(tmp_path, logging_steps=3, save_steps=4, **settings)
    args = trainer.args
    assert (args.logging_steps, args.save_steps, args.eval_steps, args.eval_delay) == (6, 8, 2, 4)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == [4, 6]
