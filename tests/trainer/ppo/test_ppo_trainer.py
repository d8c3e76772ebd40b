"""PPO as a whole: training, prompts, rewards, evaluation, printed completions and saved models."""

import copy
from dataclasses import replace

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl import GRPOTrainer

import trl_rlp.rewards.reward_function
from tests.ppo_runs import has_changed, logged, ppo_trainer, prompts, weights
from tests.reward_runs import SameText
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


TRL_1_12_METRICS = {
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
"""Metrics that TRL 1.12's PPOTrainer logged."""


# Training


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
    "as in TRL 1.12": {"score_position": "after_last_token", "loss_normalization": "micro_batch", "stop_token": None},
    "value model from the policy": {"value_model_init": "policy", "value_learning_rate": 1e-3},
    "no value clipping": {"cliprange_value": None, "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_only_policy_and_value_model_are_trained(tmp_path, settings):
    trainer = ppo_trainer(tmp_path, **settings)
    policy, critic = weights(trainer.policy_model), weights(trainer.value_model)
    frozen = {model: weights(model) for model in (trainer.ref_model, trainer.reward_model)}
    trainer.train()
    assert has_changed(trainer.policy_model, policy) and has_changed(trainer.value_model, critic)
    assert not any(has_changed(model, before) for model, before in frozen.items())
    rows = [row for row in trainer.state.log_history if "objective/kl" in row]
    assert len(rows) == 3
    assert set(rows[0]) >= TRL_1_12_METRICS
    assert [row["episode"] for row in rows] == [4, 8, 12]
    assert all(value == value for row in rows for value in row.values() if isinstance(value, float))


def test_training_reaches_a_known_optimum(tmp_path):
    """The reward is the number of `z` among four tokens: 0.016 for a random policy, 4 for the best one."""

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


def test_script_for_trl_1_12_runs(tmp_path):
    """The script has a pad token outside the embedding, token ids and a collator, and uses TRL 1.12's arguments."""
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


@pytest.mark.slow
def test_continuous_batching_trains(tmp_path):
    trainer = ppo_trainer(tmp_path, use_transformers_continuous_batching=True, total_episodes=4)
    trainer.train()
    assert trainer.state.log_history[0]["episode"] == 4


# Prompts


@pytest.mark.parametrize("kind", ["text", "chat", "ids"])
def test_every_format_of_prompts_trains_and_is_evaluated(tmp_path, kind):
    trainer = ppo_trainer(tmp_path, prompts(kind=kind), eval_dataset=prompts(2, kind))
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(-metrics["eval_objective/rlhf_reward"])


def test_stream_of_prompts_trains(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": f"{i}:"} for i in range(40)]))
    trainer = ppo_trainer(tmp_path, stream)
    trainer.train()
    assert trainer.state.global_step == 6
    with pytest.raises(ValueError, match="`train_dataset` is a stream of unknown length"):
        ppo_trainer(tmp_path, stream, total_episodes=None)
    with pytest.raises(ValueError, match="`train_dataset` is an empty stream"):
        ppo_trainer(tmp_path, IterableDataset.from_generator(lambda: iter([])))


def test_token_ids_reach_policy_and_reward_model_unchanged(tmp_path):
    tokenizer = tiny_tokenizer()
    data = Dataset.from_dict({"input_ids": [[tokenizer.eos_token_id, 40 + row, 50] for row in range(8)]})
    trainer = ppo_trainer(tmp_path, data, processing_class=tokenizer)
    generated_from, scored = [], []
    generate = trainer._generate_single_turn

    def record_prompts(prompt_ids, *args, **kwargs):
        generated_from.extend(prompt_ids)
        return generate(prompt_ids, *args, **kwargs)

    trainer._generate_single_turn = record_prompts
    function = trainer.reward_funcs[0]

    def record_scored(**kwargs):
        scored.extend(prompt.ids for prompt in kwargs["prompts"])
        return function(**kwargs)

    trainer.reward_funcs[0] = record_scored
    trainer.train()
    assert generated_from == scored
    assert {tuple(ids) for ids in generated_from} <= {tuple(ids) for ids in data["input_ids"]}
    assert len(generated_from) == 12


def test_padded_token_ids_are_read_by_their_attention_mask(tmp_path):
    tokenizer = tiny_tokenizer()
    padded = tokenizer(["ab", "abcdef"] * 4, padding="max_length", max_length=10, padding_side="left")
    plain = tokenizer(["ab", "abcdef"] * 4)
    logs = []
    for name, columns in (("padded", padded), ("plain", plain)):
        trainer = ppo_trainer(tmp_path / name, Dataset.from_dict(dict(columns)))
        trainer.train()
        logs.append(logged(trainer))
    assert logs[0] == logs[1]


def test_pad_tokens_outside_the_embedding_are_dropped_from_token_ids(tmp_path):
    texts, logs = prompts()["prompt"], []
    for name, num_pads in (("padded", 2), ("plain", 0)):
        tokenizer = tiny_tokenizer()
        models = {"model": tiny_causal_lm(tokenizer), "reward_model": tiny_reward_model(tokenizer, seed=3)}
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        ids = [[tokenizer.pad_token_id] * num_pads + tokenizer(text)["input_ids"] for text in texts]
        data = Dataset.from_dict({"input_ids": ids})
        trainer = ppo_trainer(tmp_path / name, data, processing_class=tokenizer, eval_dataset=data, **models)
        trainer.train()
        trainer.generate_completions(sampling=True)
        logs.append(logged(trainer))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("beginning", ["It is", ""])
def test_assistant_message_at_the_end_of_a_prompt_is_continued(tmp_path, beginning):
    tokenizer = tiny_tokenizer()
    question = [{"role": "user", "content": "2 + 2?"}]
    prompt = [*question, {"role": "assistant", "content": beginning}] if beginning else question
    trainer = ppo_trainer(tmp_path, Dataset.from_dict({"prompt": [prompt] * 8}), processing_class=tokenizer)
    generated_from, scored = [], []
    generate, score = trainer._generate_single_turn, trl_rlp.rewards.reward_function.score_rows

    def record_prompts(prompt_ids, *args, **kwargs):
        generated_from.extend(prompt_ids)
        return generate(prompt_ids, *args, **kwargs)

    def record_scored(model, rows, **kwargs):
        scored.extend(rows)
        return score(model, rows, **kwargs)

    trainer._generate_single_turn = record_prompts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_rlp.rewards.reward_function.score_rows", record_scored)
        trainer.train()
    text = f"<|user|>2 + 2?<|assistant|>{beginning}"
    assert {tokenizer.decode(ids) for ids in generated_from} == {text}
    assert scored and all(tokenizer.decode(ids).startswith(text) for ids in scored)
    assert all(tokenizer.decode(ids).count("<|assistant|>") == 1 for ids in scored)


def test_empty_text_is_an_error_when_it_is_read(tmp_path):
    with pytest.raises(ValueError, match="A prompt has no tokens. Drop such rows with `Dataset.filter`"):
        ppo_trainer(tmp_path, Dataset.from_dict({"prompt": [""] * 8})).train()


def test_too_long_text_is_an_error_when_it_is_read(tmp_path):
    with pytest.raises(ValueError, match="A prompt has 510 tokens, but the policy's context leaves only 506"):
        ppo_trainer(tmp_path, Dataset.from_dict({"prompt": ["a" * 510] * 8})).train()


# Generation


def test_generation_config_of_the_model_is_not_used(tmp_path):
    """Without a stop token, completions have full length even if all tokens are EOS in the model's configuration."""
    model = tiny_causal_lm(tiny_tokenizer())
    model.generation_config.eos_token_id = list(range(len(tiny_tokenizer())))
    model.generation_config.suppress_tokens = list(range(50))
    trainer = ppo_trainer(tmp_path, model=model, stop_token=None, eval_dataset=prompts(2), num_sample_generations=1)
    trainer.train()
    assert [row["completions/mean_length"] for row in logged(trainer)[:3]] == [6, 6, 6]
    assert len(model.generation_config.suppress_tokens) == 50


# Rewards


def test_scores_of_reward_models_are_standardized_on_the_initial_policy(tmp_path):
    """A reward function keeps its scale. A resumed run computes the same scale for the reward model again."""
    settings = {"standardize_rewards": True, "save_strategy": "steps", "save_steps": 1, "total_episodes": 8}
    reward_model = tiny_reward_model(tiny_tokenizer(), seed=3)
    settings |= {
        "reward_model": reward_model,
        "reward_funcs": [lambda completions, **kwargs: [2.0] * len(completions)],
    }
    trainer = ppo_trainer(tmp_path, **settings)
    trainer.train()
    function = trainer.reward_funcs[0]
    assert function.standard_deviation != 1.0 and function.mean != 0.0
    resumed = ppo_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    again = resumed.reward_funcs[0]
    assert (again.mean, again.standard_deviation) == (function.mean, function.standard_deviation)
    row = trainer.state.log_history[0]
    assert row["objective/scores"] == pytest.approx(row["rewards/reward_model/mean"] + 2.0, abs=1e-5)


def test_second_call_of_train_keeps_the_scale_of_the_scores(tmp_path):
    trainer = ppo_trainer(tmp_path, standardize_rewards=True, total_episodes=4)
    trainer.train()
    function = trainer.reward_funcs[0]
    scale = function.mean, function.standard_deviation
    trainer.train()
    assert (function.mean, function.standard_deviation) == scale


class Jump(TrainerCallback):
    """After the first rollout, a refinement moves all rewards by 3, and changes nothing else."""

    def __init__(self, reward: RefinableReward):
        self.reward = reward

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == args.steps_per_rollout:
            reward = self.reward
            reward.replace_weights(reward.model.state_dict(), reward.mean - 3.0, reward.standard_deviation, shift=3.0)


def refinable_reward(seed: int = 3, **options) -> RefinableReward:
    tokenizer = tiny_tokenizer()
    return RefinableReward(tiny_reward_model(tokenizer, seed), tokenizer, [tokenizer.eos_token_id], **options)


def run_with_a_jump(folder, has_jump: bool, **settings) -> PPOTrainer:
    """The refined reward is the second source, with a weight of 2."""
    reward = refinable_reward()
    trainer = ppo_trainer(
        folder,
        reward_funcs=[lambda completions, **kwargs: [1.0] * len(completions), reward],
        reward_weights=[1.0, 2.0],
        callbacks=[Jump(reward)] if has_jump else [],
        **{"total_episodes": 8, "value_model_init": "policy", **settings},
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "settings", [{}, {"normalize_rewards": True, "whiten_rewards": True, "missing_eos_penalty": 1.0}], ids=str
)
def test_critic_is_told_that_a_refined_reward_has_moved(tmp_path, settings):
    """The next rollout has the advantages and losses of a run whose reward stayed. Its scores are 2 · 3 higher."""
    expected, told = (run_with_a_jump(tmp_path, has_jump, **settings) for has_jump in (False, True))
    assert told.ppo_state.value_shift == 6.0 and expected.ppo_state.value_shift == 0.0
    for trainer in (expected, told):
        assert len(trainer.state.log_history) == 3
    for name, value in logged(expected)[1].items():
        if "reward" not in name and "scores" not in name:
            assert logged(told)[1][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    higher = logged(told)[1]["reward"] - logged(expected)[1]["reward"]
    assert higher == pytest.approx(6.0, abs=1e-3)
    experiences = [trainer._rollout.experience for trainer in (expected, told)]
    assert torch.allclose(experiences[1].advantages, experiences[0].advantages, atol=1e-4)


def test_critic_that_is_not_told_has_other_advantages(tmp_path, monkeypatch):
    """Without the subscription, the previous test would fail."""
    expected = run_with_a_jump(tmp_path, False)
    monkeypatch.setattr(PPOTrainer, "_follow_refinements", lambda self, rows: None)
    not_told = run_with_a_jump(tmp_path, True)
    experiences = [trainer._rollout.experience for trainer in (expected, not_told)]
    assert not torch.allclose(experiences[1].advantages, experiences[0].advantages, atol=0.1)
    assert logged(not_told)[1]["loss/value_avg"] > 10 * logged(expected)[1]["loss/value_avg"]


def test_value_shift_is_in_a_checkpoint(tmp_path):
    settings = {"total_episodes": 16, "save_strategy": "steps", "save_steps": 2}
    trainer = run_with_a_jump(tmp_path, True, **settings)
    reward = refinable_reward(mean=-3.0)
    resumed = ppo_trainer(
        tmp_path,
        reward_funcs=[lambda completions, **kwargs: [1.0] * len(completions), reward],
        reward_weights=[1.0, 2.0],
        value_model_init="policy",
        **settings,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.ppo_state == trainer.ppo_state and resumed.ppo_state.value_shift == 6.0
    assert logged(resumed)[:-1] == logged(trainer)[:-1]
    assert not has_changed(resumed.model, weights(trainer.model))


@pytest.mark.parametrize("kind", ["text", "chat", "ids"])
def test_refinable_reward_and_anchors_train_on_every_format_of_prompts(tmp_path, kind):
    """Tokens of prompts reach the reward model, and their text the anchors. Evaluation is not recorded."""
    data = prompts(kind=kind)
    texts = prompts(kind="chat" if kind == "chat" else "text")["prompt"][:]
    samples = {"prompt": texts, "completions": [["x", "x"]] * len(data), "finished": [[True, True]] * len(data)}
    anchors = SemanticAnchors.from_samples(Dataset.from_dict(samples), SameText())
    reward = refinable_reward(reads_policy_tokens=True)
    trainer = ppo_trainer(
        tmp_path,
        data,
        reward_funcs=[reward, SemanticAnchorReward(anchors, SameText())],
        reward_weights=[1.0, 3.0],
        eval_dataset=prompts(2, kind=kind),
        eval_strategy="steps",
        eval_steps=1,
    )
    reward.follow(trainer.model)
    trainer.train()
    reward.collect()
    assert reward.num_rollouts == 3 and len(reward.buffer) == 12
    assert trainer.state.log_history[0]["semantic_anchor/anchored_share"] == 1.0
    assert has_changed(trainer.model, weights(tiny_causal_lm(tiny_tokenizer())))
    assert all(anchors.knows(prompt) for prompt in reward.buffer.rows()["prompt"])


# Evaluation, tables and printed completions


def test_one_completion_of_one_token_can_be_evaluated(tmp_path):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(1), response_length=1, per_device_eval_batch_size=1)
    assert "eval_objective/rlhf_reward" in trainer.evaluate()


def test_table_of_completions_has_the_mean_advantages_of_ppo(tmp_path):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    trainer.train()
    experience = trainer._rollout.experience
    means = experience.advantages.sum(dim=1) / experience.completion_mask.sum(dim=1)
    assert list(trainer._logs["advantages"]) == pytest.approx(means.tolist())


def test_completions_of_the_evaluation_prompts_are_printed(tmp_path, capsys):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(4), num_sample_generations=1)
    trainer.train()
    printed = capsys.readouterr().out
    assert printed.count("model response") == 1 and "score" in printed
    temperature = trainer.generation_config.temperature
    trainer.generate_completions()
    assert capsys.readouterr().out.count("model response") == 1
    assert trainer.generation_config.temperature == temperature == 0.7


def test_completions_of_the_first_of_several_evaluation_datasets_are_printed(tmp_path, capsys):
    trainer = ppo_trainer(
        tmp_path, eval_dataset={"one": prompts(2), "two": prompts(2, "chat")}, num_sample_generations=1
    )
    trainer.train()
    assert "ab0:" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`eval_dataset\['two'\]` lacks a column `prompt`"):
        ppo_trainer(tmp_path, eval_dataset={"one": prompts(2), "two": Dataset.from_dict({"text": ["a"]})})


def test_printed_completions_are_not_in_the_table_of_completions(tmp_path):
    evaluation = Dataset.from_dict({"prompt": ["evaluated"] * 2})
    trainer = ppo_trainer(tmp_path, total_episodes=4, eval_dataset=evaluation, num_sample_generations=1)
    trainer.train()
    assert len(trainer._logs["prompt"]) == 4 and "evaluated" not in trainer._logs["prompt"]


# Saved models


def test_saved_model_is_a_plain_policy(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert not has_changed(saved, weights(trainer.model))
    assert not list((tmp_path / "final").glob("value*"))


def test_model_card_names_the_paper(tmp_path):
    ppo_trainer(tmp_path).create_model_card(model_name="policy")
    card = (tmp_path / "README.md").read_text()
    assert "trained with PPO" in card and "- Method: [Proximal Policy Optimization Algorithms](" in card


def test_evaluation_stays_evaluation_if_generation_ends_in_training_mode(tmp_path, monkeypatch):
    """So does TRL's continuous batching, which is too slow here."""

    def generate(self, prompt_ids, *args, **kwargs):
        self.model.train()
        return [[40, 41, 42, 1] for _ in prompt_ids], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
    reward = refinable_reward()
    trainer = ppo_trainer(tmp_path, reward_funcs=reward, eval_dataset=prompts(4))
    reward.follow(trainer.model)
    assert "eval_loss" in trainer.evaluate()
    trainer.generate_completions()
    assert trainer.ppo_state.rollouts == reward.num_rollouts == 0
    trainer.train()
    assert trainer.ppo_state.rollouts == reward.num_rollouts == 3


def test_completion_of_eos_alone_skips_no_step(tmp_path):
    """With pad = EOS, the policy loss has no token of it. A micro-batch has one completion, and a step has four."""
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    trainer = ppo_trainer(
        tmp_path,
        processing_class=tokenizer,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        score_position="after_last_token",
        loss_normalization="micro_batch",
    )
    completions = [[tokenizer.eos_token_id], *([40, 41, 42, tokenizer.eos_token_id] for _ in range(3))]
    trainer._generate_single_turn = lambda prompt_ids, *args, **kwargs: (completions, None)
    trainer.train()
    assert trainer.ppo_state.skipped_steps == 0
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_evaluation_does_not_change_the_statistics_of_the_run(tmp_path):
    trainer = ppo_trainer(tmp_path, normalize_rewards=True, adaptive_kl=True, eval_dataset=prompts(4))
    trainer.train()
    before = replace(trainer.ppo_state)
    trainer.evaluate()
    assert trainer.ppo_state == before and before.score_count == 12
