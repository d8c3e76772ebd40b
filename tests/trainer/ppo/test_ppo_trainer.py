import copy

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from tests.ppo_runs import has_changed, ppo_trainer, prompts, weights
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer


FORMER_METRICS = {
    "eps",
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "policy/entropy_avg",
    "val/ratio",
    "val/ratio_var",
    "val/num_eos_tokens",
    "lr",
    "episode",
}


VARIANTS = {
    "plain": {},
    "four generations": {"num_generations": 4},
    "one epoch, one mini-batch": {"num_ppo_epochs": 1},
    "two mini-batches": {"num_mini_batches": 2},
    "no checkpointing": {"gradient_checkpointing": False},
    "k3, whitened, penalty": {"kl_estimator": "k3", "whiten_rewards": True, "missing_eos_penalty": 1.0},
    "clamped, adaptive, normalized": {
        "kl_estimator": "clamped",
        "adaptive_kl": True,
        "normalize_rewards": True,
        "reward_clip": 2.0,
    },
    "as in 1.12": {"score_position": "after_last_token", "loss_normalization": "micro_batch", "stop_token": None},
    "critic from policy": {"value_model_init": "policy", "value_learning_rate": 1e-3},
    "no value clipping": {"cliprange_value": None, "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains_policy_and_critic_and_nothing_else(tmp_path, settings):
    trainer = ppo_trainer(tmp_path, **settings)
    policy, critic = weights(trainer.policy_model), weights(trainer.value_model)
    frozen = {model: weights(model) for model in (trainer.ref_model, trainer.reward_model)}
    trainer.train()
    assert has_changed(trainer.policy_model, policy) and has_changed(trainer.value_model, critic)
    assert not any(has_changed(model, before) for model, before in frozen.items())
    rows = [row for row in trainer.state.log_history if "objective/kl" in row]
    assert len(rows) == 3
    assert set(rows[0]) >= FORMER_METRICS
    assert [row["episode"] for row in rows] == [4, 8, 12]
    assert all(value == value for row in rows for value in row.values() if isinstance(value, float))


@pytest.mark.parametrize("kind", ["text", "chat", "ids"])
def test_every_form_of_prompts_trains(tmp_path, kind):
    trainer = ppo_trainer(tmp_path, prompts(kind=kind), eval_dataset=prompts(2, kind))
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(-metrics["eval_objective/rlhf_reward"])


def test_it_reaches_a_known_optimum(tmp_path):
    """Reward: how many of the four tokens are `z`. A random policy says .016 of them, the best one four."""

    def count(completions, **kwargs):
        return [float(text.count("z")) for text in completions]

    settings = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "total_episodes": 1600}
    settings |= {"response_length": 4, "num_ppo_epochs": 4, "kl_coef": 0.0, "temperature": 1.0, "learning_rate": 1e-2}
    settings |= {"lr_scheduler_type": "constant", "gradient_checkpointing": False, "stop_token": None}
    trainer = ppo_trainer(tmp_path, prompts(32), reward_funcs=[count], value_model_init="policy", **settings)
    trainer.train()
    scores = [row["objective/scores"] for row in trainer.state.log_history if "objective/scores" in row]
    assert scores[0] < 0.5
    assert sum(scores[-5:]) / 5 > 3.5


def test_a_script_of_the_former_trainer_runs(tmp_path):
    """A pad token that the embedding does not have, token ids, a collator, and every argument by its former name."""
    tokenizer = tiny_tokenizer()
    policy, reward_model = tiny_causal_lm(tokenizer), tiny_reward_model(tokenizer, seed=3)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    data = Dataset.from_dict({"input_ids": prompts(kind="ids")["input_ids"], "lengths": list(range(8))})
    trainer = ppo_trainer(
        tmp_path,
        data,
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=reward_model,
        value_model=tiny_reward_model(tiny_tokenizer(), seed=4),
        data_collator=DataCollatorWithPadding(tokenizer),
        eval_dataset=data,
        missing_eos_penalty=1.0,
        stop_token="eos",
        num_sample_generations=2,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    trainer.generate_completions()
    assert trainer.policy_model is trainer.model
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert tokenizer.pad_token == "[PAD]"
    assert AutoTokenizer.from_pretrained(tmp_path / "final").pad_token_id < policy.config.vocab_size


def test_what_it_saves_is_a_plain_policy(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert not has_changed(again, weights(trainer.model))
    assert not list((tmp_path / "final").glob("value*"))


def test_rewards_of_models_may_be_standardized_on_the_policy_as_it_starts(tmp_path):
    """A function keeps its scale, and a resumed run finds the model's again."""
    settings = {"standardize_rewards": True, "save_strategy": "steps", "save_steps": 1, "total_episodes": 8}
    reward_model = tiny_reward_model(tiny_tokenizer(), seed=3)
    settings |= {
        "reward_model": reward_model,
        "reward_funcs": [lambda completions, **kwargs: [2.0] * len(completions)],
    }
    trainer = ppo_trainer(tmp_path, **settings)
    trainer.train()
    function = trainer.reward_funcs[0]
    assert function.deviation != 1.0 and function.mean != 0.0
    resumed = ppo_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (resumed.reward_funcs[0].mean, resumed.reward_funcs[0].deviation) == (function.mean, function.deviation)
    row = trainer.state.log_history[0]
    assert row["objective/scores"] == pytest.approx(row["rewards/reward_model/mean"] + 2.0, abs=1e-5)


def test_the_model_card_names_the_paper(tmp_path):
    ppo_trainer(tmp_path).create_model_card(model_name="policy")
    card = (tmp_path / "README.md").read_text()
    assert "trained with PPO, a method introduced in [Proximal Policy Optimization Algorithms" in card


def test_a_critic_from_a_reward_model_in_bf16_has_the_policy_s_dtype(tmp_path):
    trainer = ppo_trainer(tmp_path, reward_model=tiny_reward_model(tiny_tokenizer(), seed=3).to(torch.bfloat16))
    assert trainer.value_model.dtype == torch.float32 and trainer.reward_model.dtype == torch.bfloat16


def test_rewards_are_standardized_once(tmp_path):
    trainer = ppo_trainer(tmp_path, standardize_rewards=True, total_episodes=4)
    trainer.train()
    function = trainer.reward_funcs[0]
    scale = function.mean, function.deviation
    trainer.train()
    assert (function.mean, function.deviation) == scale
