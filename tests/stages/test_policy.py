import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_rlp.stages.policy as module
from tests.ppo_runs import prompts
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.scoring import score, score_samples
from trl_rlp.stages.policy import POLICY_TRAINERS, train_policy
from trl_rlp.storage.artifacts import load_policy, load_reward_model


TRAINING = {
    "per_device_train_batch_size": 2,
    "max_completion_length": 4,
    "num_generations": 2,
    "max_steps": 1,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def load_weights(folder) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("policy_trainer", POLICY_TRAINERS)
@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")])
def test_every_trainer_saves_a_plain_policy_and_returns_metrics(
    tmp_path, sft_model, reward_model, policy_trainer, peft_config
):
    metrics = train_policy(tmp_path, sft_model, reward_model, prompts(4), TRAINING, policy_trainer, peft_config)
    assert not (tmp_path / "adapter_config.json").exists()
    weights, initial = load_weights(tmp_path), load_weights(sft_model)
    assert set(weights) == set(initial)
    changed = {name for name, weight in weights.items() if not weight.equal(initial[name])}
    if peft_config is None:
        assert "lm_head.weight" in changed
    else:
        assert changed <= {name for name in weights if "q_proj" in name}
    assert "train_runtime" in metrics and all(isinstance(value, (int, float)) for value in metrics.values())


@pytest.mark.parametrize("policy_trainer", POLICY_TRAINERS)
@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")])
def test_an_sft_model_that_is_an_adapter_is_merged_for_the_policy_and_its_reference(
    tmp_path, sft_model, reward_model, policy_trainer, peft_config, monkeypatch
):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(sft_model), lora).save_pretrained(tmp_path / "adapter")
    args = {**TRAINING, "learning_rate": 0.0, **({} if policy_trainer == "ppo" else {"beta": 0.1})}
    folder, loaded = tmp_path / "policy", []

    def train(trainer, *arguments):
        if policy_trainer != "ppo":  # vLLM loads the model and its tokenizer by this path
            loaded.append(AutoTokenizer.from_pretrained(folder / module.MERGED_MODEL).get_vocab())
        return train_to_end(trainer, *arguments)

    train_to_end = module.train_to_end
    monkeypatch.setattr(module, "train_to_end", train)
    metrics = train_policy(folder, tmp_path / "adapter", reward_model, prompts(4), args, policy_trainer, peft_config)
    assert metrics["objective/kl" if policy_trainer == "ppo" else "kl"] == pytest.approx(0, abs=1e-6)
    _, tokenizer = load_policy(sft_model)
    assert loaded == ([] if policy_trainer == "ppo" else [tokenizer.get_vocab()])
    merged, _ = load_policy(tmp_path / "adapter")
    weights = load_weights(folder)
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weights[name], weight)
    assert not (folder / module.MERGED_MODEL).exists()
    card = (folder / "README.md").read_text()
    assert module.MERGED_MODEL not in card and (policy_trainer == "ppo" or "local folder `adapter`" in card)


def test_an_interrupted_call_resumes_from_the_last_checkpoint(tmp_path, sft_model, reward_model, monkeypatch):
    """Two rollouts of four optimizer steps. The first call is interrupted in the second rollout."""
    args = {**TRAINING, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    expected = train_policy(tmp_path / "uninterrupted", sft_model, reward_model, prompts(4), args)
    calls = []
    trainer_class = POLICY_TRAINERS["ppo"][0]
    training_step = trainer_class.training_step

    def interrupted(self, *batch, **kwargs):
        calls.append(self.state.global_step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return training_step(self, *batch, **kwargs)

    monkeypatch.setattr(trainer_class, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_policy(tmp_path / "run", sft_model, reward_model, prompts(4), args)
    metrics = train_policy(tmp_path / "run", sft_model, reward_model, prompts(4), args)
    assert calls == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert metrics["objective/scores"] == expected["objective/scores"]
    weights, uninterrupted = load_weights(tmp_path / "run"), load_weights(tmp_path / "uninterrupted")
    assert all(weight.equal(uninterrupted[name]) for name, weight in weights.items())


def test_an_unknown_trainer_is_named_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"`policy_trainer` must be one of \['grpo', 'ppo', 'rloo'\], got 'dpo'"):
        train_policy(tmp_path, "no-such-model", "no-such-model", prompts(4), TRAINING, policy_trainer="dpo")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def arguments(monkeypatch):
    """Replaces every trainer. Returns the arguments of the last one."""
    captured = {}

    class Recorder:
        def __init__(self, **arguments):
            captured.update(arguments)

    for name, (_, config_class) in list(POLICY_TRAINERS.items()):
        monkeypatch.setitem(POLICY_TRAINERS, name, (Recorder, config_class))
    monkeypatch.setattr(module, "train_to_end", lambda trainer, folder, tags: {})
    return captured


@pytest.mark.parametrize("max_length", [None, 4])
def test_the_policy_is_rewarded_as_by_score(tmp_path, sft_model, reward_model, arguments, max_length):
    train_policy(tmp_path, sft_model, reward_model, prompts(4), TRAINING, "rloo", max_length=max_length)
    model, tokenizer = load_reward_model(reward_model)
    texts, completions = ["what is it?", "who?"], ["red", "blue one"]
    completion_ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in completions]
    rewards = arguments["reward_funcs"](prompts=texts, completions=completions, completion_ids=completion_ids)
    assert rewards == pytest.approx(score(model, tokenizer, texts, completions, max_length=max_length), abs=1e-6)
    assert arguments["model"] == sft_model
    assert arguments["args"].output_dir == str(tmp_path / "checkpoints")


def test_rewards_are_standardized_on_samples_of_the_sft_model(tmp_path, sft_model, reward_model, arguments):
    data = Dataset.from_dict({"prompt": ["1?", "2?", "3?"], "answers": ["a", "b", "c"]})
    sampling = {"num_generations": 2, "max_new_tokens": 4, "seed": 1}
    train_policy(tmp_path, sft_model, reward_model, data, TRAINING, standardize_with=sampling)
    reward = arguments["reward_funcs"]
    samples = sample_completions(data.select_columns(["prompt"]), *load_policy(sft_model), **sampling)
    rewards = np.array(score_samples(*load_reward_model(reward_model), samples))
    assert (reward.mean, reward.standard_deviation) == pytest.approx((rewards.mean(), rewards.std()), abs=1e-6)
    train_policy(tmp_path, sft_model, reward_model, data, TRAINING)
    assert (arguments["reward_funcs"].mean, arguments["reward_funcs"].standard_deviation) == (0.0, 1.0)


@pytest.mark.parametrize(("init", "starts_from_reward"), [(None, True), ("reward", True), ("policy", False)])
def test_the_critic_starts_from_the_reward_model_unless_the_arguments_say_otherwise(
    tmp_path, sft_model, reward_model, monkeypatch, init, starts_from_reward
):
    critics = []
    monkeypatch.setattr(
        module, "train_to_end", lambda trainer, folder, tags: critics.append(trainer.value_model) or {}
    )
    train_policy(tmp_path, sft_model, reward_model, prompts(4), {**TRAINING, "value_model_init": init})
    critic = critics[0].model.layers[0].self_attn.q_proj.weight
    reward, _ = load_reward_model(reward_model)
    policy, _ = load_policy(sft_model)
    weights = [model.model.layers[0].self_attn.q_proj.weight for model in (reward, policy)]
    assert not weights[0].equal(weights[1])
    assert [critic.equal(weight) for weight in weights] == [starts_from_reward, not starts_from_reward]


def test_only_ppo_gets_an_adapter_for_its_value_model(tmp_path, sft_model, reward_model, arguments):
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    train_policy(tmp_path, sft_model, reward_model, prompts(4), TRAINING, "ppo", peft_config)
    value = arguments.pop("value_peft_config")
    assert (value.r, value.task_type, value.modules_to_save) == (2, "SEQ_CLS", ["score"])
    assert (peft_config.task_type, peft_config.modules_to_save) == ("CAUSAL_LM", None)
    train_policy(tmp_path, sft_model, reward_model, prompts(4), TRAINING, "grpo", peft_config)
    assert "value_peft_config" not in arguments
    train_policy(tmp_path, sft_model, reward_model, prompts(4), TRAINING, "ppo")
    assert "value_peft_config" not in arguments
