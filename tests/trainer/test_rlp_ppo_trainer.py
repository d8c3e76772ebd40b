import copy
import json

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)

from tests.ppo_runs import logged, ppo_config, ppo_trainer, prompts
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.scoring import score
from trl_rlp.trainer.rlp_ppo_trainer import RLPPPOTrainer


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


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def has_changed(model, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


VARIANTS = {
    "plain": {},
    "four generations": {"num_generations": 4},
    "one epoch, one mini-batch": {"num_ppo_epochs": 1},
    "two mini-batches": {"num_mini_batches": 2},
    "no checkpointing": {"gradient_checkpointing": False},
    "k3, whitened, penalty": {"kl_estimator": "k3", "whiten_rewards": True, "missing_eos_penalty": 1.0},
    "clamped, adaptive, normalised": {
        "kl_estimator": "clamped",
        "adaptive_kl": True,
        "normalise_rewards": True,
        "reward_clip": 2.0,
    },
    "as in 1.12": {"score_position": "after_last_token", "loss_normalisation": "micro_batch", "stop_token": None},
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


def test_the_kl_starts_at_zero_and_the_reference_stays(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.train()
    kl = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and abs(kl[-1]) > 1e-4


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


def test_scores_are_those_of_the_one_scoring_function(tmp_path):
    """EOS reaches the reward model where a completion has one, and only there."""
    tokenizer, seen = tiny_tokenizer(), []
    reward_model = tiny_reward_model(tokenizer, seed=3)

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(None)

    trainer = ppo_trainer(tmp_path, reward_model=reward_model, num_generations=4, callbacks=[Seen()])
    function, calls = trainer.reward_funcs[0], []
    trainer.reward_funcs[0] = lambda **kwargs: calls.append((kwargs, function(**kwargs))) or calls[-1][1]
    trainer.train()
    assert calls
    for kwargs, rewards in calls:
        finished = [ids[-1] == tokenizer.eos_token_id for ids in kwargs["completion_ids"]]
        expected = score(reward_model, tokenizer, kwargs["prompts"], kwargs["completions"], finished)
        assert rewards == pytest.approx(expected, abs=1e-5)


def test_token_ids_reach_policy_and_reward_model_unchanged(tmp_path):
    tokenizer = tiny_tokenizer()
    data = Dataset.from_dict({"input_ids": [[tokenizer.eos_token_id, 40 + row, 50] for row in range(8)]})
    trainer = ppo_trainer(tmp_path, data, processing_class=tokenizer)
    read, scored = [], []
    generate = trainer._generate_single_turn

    def spy(prompt_ids, *args, **kwargs):
        read.extend(prompt_ids)
        return generate(prompt_ids, *args, **kwargs)

    trainer._generate_single_turn = spy
    function = trainer.reward_funcs[0]

    def score_spy(**kwargs):
        scored.extend(prompt.ids for prompt in kwargs["prompts"])
        return function(**kwargs)

    trainer.reward_funcs[0] = score_spy
    trainer.train()
    assert read == scored
    assert {tuple(ids) for ids in read} <= {tuple(ids) for ids in data["input_ids"]} and len(read) == 12


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


def test_completions_of_the_evaluation_prompts_are_printed(tmp_path, capsys):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(4), num_sample_generations=1)
    trainer.train()
    printed = capsys.readouterr().out
    assert printed.count("model response") == 1 and "score" in printed
    temperature = trainer.generation_config.temperature
    trainer.generate_completions()
    assert capsys.readouterr().out.count("model response") == 1
    assert trainer.generation_config.temperature == temperature == 0.7


def test_what_it_saves_is_a_plain_policy(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert not has_changed(again, weights(trainer.model))
    assert not list((tmp_path / "final").glob("value*"))


def test_an_adapter_trains_with_the_policy_without_it_as_the_reference(tmp_path):
    peft_config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = ppo_trainer(tmp_path, peft_config=peft_config)
    assert trainer.ref_model is None
    before = weights(trainer.model)
    trainer.train()
    changed = {
        name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed and all("lora" in name for name in changed)
    kl = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] != pytest.approx(0, abs=1e-6)


def test_the_critic_may_be_an_adapter(tmp_path):
    trainer = ppo_trainer(tmp_path, value_peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    before = weights(trainer.value_model)
    trainer.train()
    after = weights(trainer.value_model)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert any("lora" in name for name in changed) and any("score" in name for name in changed)
    assert all("lora" in name or "modules_to_save" in name for name in changed)


def test_rewards_of_several_sources_are_weighed(tmp_path):
    """A reward model with another tokenizer, one in a folder, and a function; the weights are 0, 0 and 2."""
    other = tiny_tokenizer(offset=7)
    folder = save(tiny_reward_model(tiny_tokenizer(), seed=5), tiny_tokenizer(), tmp_path / "reward")
    trainer = ppo_trainer(
        tmp_path / "run",
        reward_model=tiny_reward_model(other, seed=3),
        reward_funcs=[folder, lambda completions, **kwargs: [3.0] * len(completions)],
        reward_processing_class=[other, None, None],
        reward_weights=[0.0, 0.0, 2.0],
    )
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["objective/scores"] == 6.0
    assert {"rewards/reward_model/mean", "rewards/reward/mean"} <= set(row)
    assert trainer.value_model.config.vocab_size == len(tiny_tokenizer())


def test_rewards_of_models_may_be_standardised_on_the_policy_as_it_starts(tmp_path):
    """A function keeps its scale, and a resumed run finds the model's again."""
    settings = {"standardise_rewards": True, "save_strategy": "steps", "save_steps": 1, "total_episodes": 8}
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


def test_the_table_of_completions_has_ppo_s_advantages(tmp_path):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    trainer.train()
    tensors = trainer._rollout.tensors
    means = tensors["advantages"].sum(dim=1) / tensors["completion_mask"].sum(dim=1)
    assert list(trainer._logs["advantages"]) == pytest.approx(means.tolist())


def test_the_model_card_names_the_paper(tmp_path):
    ppo_trainer(tmp_path).create_model_card(model_name="policy")
    card = (tmp_path / "README.md").read_text()
    assert "trained with RLP-PPO, a method introduced in [Fine-Tuning Language Models with Reward Learning" in card


@pytest.mark.slow
def test_continuous_batching_passes_through(tmp_path):
    trainer = ppo_trainer(tmp_path, use_transformers_continuous_batching=True, total_episodes=4)
    trainer.train()
    assert trainer.state.log_history[0]["episode"] == 4


def test_the_critic_may_learn_alone_at_first(tmp_path):
    trainer = ppo_trainer(tmp_path, value_warmup_rollouts=3)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    trainer.train()
    assert not has_changed(trainer.model, policy) and has_changed(trainer.value_model, critic)


RESUMED = {
    "plain": {},
    "in the second pass": {"data": prompts(4), "total_episodes": 16},
    "running state": {"adaptive_kl": True, "kl_horizon": 20, "normalise_rewards": True, "num_mini_batches": 2},
    "adapters": {
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "value_peft_config": LoraConfig(r=2, target_modules=["q_proj"]),
    },
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_logs_what_a_straight_one_does(tmp_path, settings):
    settings = {"save_strategy": "steps", "save_steps": 1, **settings}
    straight = ppo_trainer(tmp_path, **settings)
    straight.train()
    checkpoints = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints[:-1]:
        resumed = ppo_trainer(tmp_path, **settings)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert logged(resumed)[:-1] == logged(straight)[:-1]
        assert not has_changed(resumed.model, weights(straight.model))
        assert not has_changed(resumed.value_model, weights(straight.value_model))


@pytest.mark.parametrize("save_steps", [1, 2, 0.4])
def test_checkpoints_fall_between_rollouts(tmp_path, save_steps):
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=save_steps, num_mini_batches=2)
    trainer.train()
    steps = [int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")]
    assert steps and all(step % 4 == 0 for step in steps)


def test_a_checkpoint_that_is_asked_for_in_a_rollout_waits_for_its_end(tmp_path):
    class Impatient(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.step = state.global_step

        def on_substep_end(self, args, state, control, **kwargs):
            control.should_save = self.step == 4

    trainer = ppo_trainer(tmp_path, num_mini_batches=2, gradient_accumulation_steps=4, callbacks=[Impatient()])
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] in (["checkpoint-8"], [])


def test_a_checkpoint_holds_the_value_model(tmp_path):
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "checkpoint-6"
    again = AutoModelForSequenceClassification.from_pretrained(folder / "value_model")
    assert not has_changed(again, weights(trainer.value_model))
    assert json.loads((folder / "ppo_state.json").read_text())["rollouts"] == 3


def test_a_foreign_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="holds no ppo_state.json"):
        ppo_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_rollout_that_is_not_finite_is_skipped_and_counted(tmp_path):
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [float("nan") if len(calls) == 2 else 1.0] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], normalise_rewards=True)
    trainer.train()
    assert [row["skipped_steps"] for row in trainer.state.log_history if "skipped_steps" in row] == [0, 2, 2]
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_three_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [1.0 if len(calls) == 1 else float("inf")] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], save_strategy="steps", save_steps=1, total_episodes=40)
    with pytest.raises(RuntimeError, match=r"3 times in a row a rollout's scores.* not finite.*checkpoint-2\)"):
        trainer.train()


def test_a_loss_that_is_not_finite_moves_nothing(tmp_path):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: compute_loss(*args, **kwargs) * float("nan")
    trainer.train()
    assert not has_changed(trainer.model, policy) and not has_changed(trainer.value_model, critic)


@pytest.mark.parametrize("side", ["model", "value_model"])
def test_one_bad_element_of_one_gradient_moves_nothing(tmp_path, side):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    norm = next(p for name, p in getattr(trainer, side).named_parameters() if name.endswith("norm.weight"))
    norm.register_hook(lambda grad: grad.index_fill(0, torch.tensor([2]), torch.inf))
    trainer.train()
    assert not has_changed(trainer.model, policy) and not has_changed(trainer.value_model, critic)
    assert trainer.state.log_history[0]["skipped_steps"] == 2


def test_a_stream_of_prompts_trains(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": f"{i}:"} for i in range(40)]))
    trainer = ppo_trainer(tmp_path, stream)
    trainer.train()
    assert trainer.state.global_step == 6
    with pytest.raises(ValueError, match="`train_dataset` is a stream, whose length is not known"):
        ppo_trainer(tmp_path, stream, total_episodes=None)


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
    "stop token": (lambda: {"stop_token_id": 9999}, "`stop_token_id`=9999 lies outside the policy's vocabulary"),
    "few prompts": (lambda: {"data": prompts(3)}, "`train_dataset` has 3 prompts, but a rollout takes 4"),
    "long ids": (
        lambda: {"data": Dataset.from_dict({"input_ids": [[40] * 510] * 8})},
        "`train_dataset` row 0 has 510 tokens, but the policy's context leaves 506",
    ),
    "foreign ids": (
        lambda: {"data": Dataset.from_dict({"input_ids": [[9999]] * 8})},
        "`train_dataset` row 0 holds token id 9999, outside the policy's embedding",
    ),
    "no column": (lambda: {"data": Dataset.from_dict({"text": ["a"] * 8})}, "`train_dataset` lacks a column `prompt`"),
    "reward as critic": (
        lambda: (lambda model: {"reward_model": model, "value_model": model})(tiny_reward_model(tiny_tokenizer())),
        "`value_model` is also the policy, the reference or the reward model",
    ),
    "labels of a further source": (
        lambda: {"reward_funcs": [tiny_reward_model(tiny_tokenizer(), num_labels=2)]},
        "A model of `reward_funcs` has `num_labels`=2",
    ),
    "unknown adapter": (
        lambda: {"ref_adapter_name": "two"},
        "`ref_adapter_name`='two' is none of the policy's adapters",
    ),
    "virtual tokens": (
        lambda: {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)},
        "one of virtual tokens",
    ),
    "standardised stream": (
        lambda: {"data": Dataset.from_dict({"prompt": ["a"] * 8}).to_iterable_dataset(), "standardise_rewards": True},
        "`train_dataset` is a stream, which `standardise_rewards` cannot sample",
    ),
    "tokenizers": (
        lambda: {"reward_processing_class": [tiny_tokenizer(), None]},
        "`reward_processing_class` has 2 entries for 1 sources",
    ),
}


@pytest.mark.parametrize("make, match", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_named_before_any_work(tmp_path, make, match):
    with pytest.raises(ValueError, match=match):
        ppo_trainer(tmp_path, **make())


def test_a_long_text_is_named_when_it_is_read(tmp_path):
    with pytest.raises(ValueError, match="A prompt has 510 tokens, but the policy's context leaves 506"):
        ppo_trainer(tmp_path, Dataset.from_dict({"prompt": ["a" * 510] * 8})).train()


def test_another_collator_is_warned_of(tmp_path, caplog):
    ppo_trainer(tmp_path, data_collator=lambda rows: rows)
    assert "`data_collator` (`function`) is not used" in caplog.text


def test_without_a_stop_token_completions_go_on_whatever_the_model_s_own_config_says(tmp_path):
    model = tiny_causal_lm(tiny_tokenizer())
    model.generation_config.eos_token_id = list(range(len(tiny_tokenizer())))
    model.generation_config.suppress_tokens = list(range(50))
    trainer = ppo_trainer(tmp_path, model=model, stop_token=None, eval_dataset=prompts(2), num_sample_generations=1)
    trainer.train()
    assert [row["completions/mean_length"] for row in logged(trainer)[:3]] == [6, 6, 6]
    assert len(model.generation_config.suppress_tokens) == 50


def test_the_critic_trains_with_checkpointing(tmp_path, monkeypatch):
    trainer = ppo_trainer(tmp_path, gradient_checkpointing=True)
    layer = trainer.value_model.model.layers[0]
    calls = []
    checkpoint = layer._gradient_checkpointing_func
    monkeypatch.setattr(layer, "_gradient_checkpointing_func", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    trainer.train()
    assert trainer.value_model.training and len(calls) >= 12


def test_one_completion_of_one_token_can_be_evaluated(tmp_path):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(1), response_length=1, per_device_eval_batch_size=1)
    assert "eval_objective/rlhf_reward" in trainer.evaluate()


def test_a_critic_from_a_reward_model_in_bf16_has_the_policy_s_dtype(tmp_path):
    trainer = ppo_trainer(tmp_path, reward_model=tiny_reward_model(tiny_tokenizer(), seed=3).to(torch.bfloat16))
    assert trainer.value_model.dtype == torch.float32 and trainer.reward_model.dtype == torch.bfloat16


@pytest.mark.parametrize("argument", ["reward_model", "reward_funcs"])
def test_a_reward_model_may_be_an_adapter(tmp_path, argument):
    model = get_peft_model(
        tiny_reward_model(tiny_tokenizer(), seed=3), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    )
    before = weights(model)
    trainer = ppo_trainer(tmp_path, **{argument: [model] if argument == "reward_funcs" else model})
    trainer.train()
    assert not has_changed(model, before)
    assert not any("lora" in name for name, _ in trainer.value_model.named_parameters())


def test_the_named_adapter_is_trained_against_the_named_reference(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_lm(tiny_tokenizer()), config, adapter_name="one")
    model.add_adapter("two", config)
    before = weights(model)
    trainer = ppo_trainer(tmp_path, model=model, model_adapter_name="two", ref_adapter_name="one")
    trainer.train()
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed and all(".two." in name for name in changed)


def test_rows_that_are_padded_already_are_read_by_their_mask(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = tokenizer(["ab", "abcdef"] * 4, padding="max_length", max_length=10, padding_side="left")
    texts = tokenizer(["ab", "abcdef"] * 4)
    logs = []
    for name, columns in (("padded", rows), ("plain", texts)):
        trainer = ppo_trainer(tmp_path / name, Dataset.from_dict(dict(columns)))
        trainer.train()
        logs.append(logged(trainer))
    assert logs[0] == logs[1]


def test_the_first_of_several_evaluation_sets_is_printed(tmp_path, capsys):
    trainer = ppo_trainer(
        tmp_path, eval_dataset={"one": prompts(2), "two": prompts(2, "chat")}, num_sample_generations=1
    )
    trainer.train()
    assert "ab0:" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`eval_dataset\['two'\]` lacks a column `prompt`"):
        ppo_trainer(tmp_path, eval_dataset={"one": prompts(2), "two": Dataset.from_dict({"text": ["a"]})})


def test_printed_completions_stay_out_of_the_table_of_the_rollout(tmp_path):
    evaluation = Dataset.from_dict({"prompt": ["evaluated"] * 2})
    trainer = ppo_trainer(tmp_path, total_episodes=4, eval_dataset=evaluation, num_sample_generations=1)
    trainer.train()
    assert len(trainer._logs["prompt"]) == 4 and "evaluated" not in trainer._logs["prompt"]


def test_rewards_are_standardised_once(tmp_path):
    trainer = ppo_trainer(tmp_path, standardise_rewards=True, total_episodes=4)
    trainer.train()
    function = trainer.reward_funcs[0]
    scale = function.mean, function.deviation
    trainer.train()
    assert (function.mean, function.deviation) == scale


def test_biases_and_norms_of_the_critic_do_not_decay(tmp_path):
    trainer = ppo_trainer(tmp_path, weight_decay=0.1)
    decayed, rest = trainer._ppo.optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 1 for parameter in rest["params"]) and rest["params"]
    assert all(parameter.ndim == 2 for parameter in decayed["params"])


def test_prompts_are_needed(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is None. Pass prompts"):
        RLPPPOTrainer(
            ppo_config(tmp_path),
            tiny_tokenizer(),
            tiny_causal_lm(tiny_tokenizer()),
            reward_model=tiny_reward_model(tiny_tokenizer()),
        )
