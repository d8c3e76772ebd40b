"""Setup of a PPO run: value model, reference policy and dropout."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from tests.ppo_runs import ppo_config, ppo_trainer, prompts, weights
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.storage.artifacts import load_reward_model
from trl_rlp.trainer.ppo.ppo_setup import init_value_model
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


TOKENIZER = tiny_tokenizer()


# What is loaded by name


def test_revision_and_trust_reach_everything_that_is_loaded_by_name(tmp_path, monkeypatch):
    """The policy's own arguments select its tokenizer and the reward models, as in TRL."""
    policy = save(tiny_causal_lm(TOKENIZER), TOKENIZER, tmp_path / "policy")
    reward_model = save(tiny_reward_model(TOKENIZER, seed=3), TOKENIZER, tmp_path / "reward")
    asked = []
    for auto_class in (AutoTokenizer, AutoModelForCausalLM, AutoModelForSequenceClassification):
        load = auto_class.from_pretrained.__func__

        def record(cls, path, *args, load=load, **options):
            asked.append((cls.__name__, Path(path).name, options.pop("revision", None), options["trust_remote_code"]))
            return load(cls, path, *args, **options)

        monkeypatch.setattr(auto_class, "from_pretrained", classmethod(record))
    settings = {"trust_remote_code": True, "model_init_kwargs": {"revision": "v1"}}
    PPOTrainer(
        ppo_config(tmp_path / "ppo", **settings), None, policy, reward_funcs=reward_model, train_dataset=prompts()
    )
    assert set(asked) == {
        ("AutoModelForCausalLM", "policy", "v1", True),
        ("AutoTokenizer", "policy", "v1", True),
        ("AutoModelForSequenceClassification", "reward", "v1", True),
        ("AutoTokenizer", "reward", "v1", True),
    }
    trust = {"trust_remote_code": True}
    models = AutoModelForCausalLM.from_pretrained(policy, **trust), load_reward_model(reward_model, **trust)[0]
    asked.clear()
    PPOTrainer(
        ppo_config(tmp_path / "ppo", **settings), None, models[0], reward_funcs=models[1], train_dataset=prompts()
    )
    assert asked == [("AutoTokenizer", "policy", None, True), ("AutoTokenizer", "reward", None, True)]


# The value model


def has_same_trunk(model, other) -> bool:
    first, second = model.base_model.state_dict(), other.base_model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def shares_weights(model, other) -> bool:
    return bool({p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.parameters()})


@pytest.mark.parametrize("init", ["reward", None])
def test_value_model_starts_from_the_reward_model_with_a_score_head_of_zeros(init):
    policy, reward_model = tiny_causal_lm(TOKENIZER), tiny_reward_model(TOKENIZER, seed=3).requires_grad_(False)
    model = init_value_model(init, policy, reward_model)
    assert has_same_trunk(model, reward_model) and not shares_weights(model, reward_model)
    assert not model.score.weight.any() and reward_model.score.weight.any()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("init, reward_model", [("policy", tiny_reward_model(TOKENIZER, seed=3)), (None, None)])
def test_value_model_starts_from_the_policy(init, reward_model):
    policy = tiny_causal_lm(TOKENIZER)
    model = init_value_model(init, policy, reward_model)
    assert has_same_trunk(model, policy) and not shares_weights(model, policy)
    assert not model.score.weight.any()
    assert model.config.num_labels == 1


def test_value_model_is_built_on_the_device_of_the_policy(monkeypatch):
    """On a CPU, drawing the weights of a large model takes minutes, although the policy's weights replace them."""
    devices, build = [], AutoModelForSequenceClassification.from_config

    def record(*args, **kwargs):
        devices.append(torch.get_default_device())
        return build(*args, **kwargs)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", record)
    init_value_model("policy", tiny_causal_lm(TOKENIZER).to("meta"), None)
    assert devices == [torch.device("meta")]


def test_value_model_does_not_copy_adapters_of_the_policy():
    policy = tiny_causal_lm(TOKENIZER)
    expected = tiny_causal_lm(TOKENIZER)
    adapted = get_peft_model(policy, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert has_same_trunk(init_value_model("policy", adapted, None), expected)


def test_value_model_from_a_missing_reward_model_is_an_error():
    with pytest.raises(ValueError, match='`value_model_init`="reward", but there is no `reward_model`'):
        init_value_model("reward", tiny_causal_lm(TOKENIZER), None)


def test_value_model_from_a_reward_model_in_bf16_has_the_dtype_of_the_policy(tmp_path):
    trainer = ppo_trainer(tmp_path, reward_model=tiny_reward_model(tiny_tokenizer(), seed=3).to(torch.bfloat16))
    assert trainer.value_model.dtype == torch.float32 and trainer.reward_model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["reward", "policy"])
def test_value_model_from_quantized_weights_is_an_error(kind):
    """PyTorch would only say that integers have no gradients."""
    models = {"policy": tiny_causal_lm(TOKENIZER), "reward": tiny_reward_model(TOKENIZER)}
    models[kind].config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(
        ValueError, match=f"a copy of the {kind} model, whose weights are quantized.*Pass `value_model`"
    ):
        init_value_model(kind, models["policy"], models["reward"])


def test_value_model_from_a_reward_model_with_an_fp32_head_has_one_dtype(tmp_path):
    folder = save(tiny_reward_model(TOKENIZER, seed=3), TOKENIZER, tmp_path / "reward")
    reward_model, _ = load_reward_model(folder, dtype="bfloat16")
    value_model = init_value_model("reward", tiny_causal_lm(TOKENIZER).bfloat16(), reward_model)
    assert {parameter.dtype for parameter in value_model.parameters()} == {torch.bfloat16}
    assert all(buffer.dtype == torch.float32 for buffer in value_model.buffers())


def test_reward_models_that_are_loaded_by_name_have_the_dtype_of_the_configuration(tmp_path):
    folder = save(tiny_reward_model(TOKENIZER, seed=3), TOKENIZER, tmp_path / "reward")
    trainer = ppo_trainer(tmp_path / "run", reward_funcs=[folder], inference_dtype="bfloat16")
    assert trainer.reward_funcs[0].model.dtype == torch.bfloat16 and trainer.value_model.dtype == torch.float32
    with pytest.raises(ValueError, match="`inference_dtype` must be one of .*, got 'fp8'"):
        ppo_config(tmp_path, inference_dtype="fp8")


def test_value_model_can_be_an_adapter(tmp_path):
    trainer = ppo_trainer(tmp_path, value_peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    before = weights(trainer.value_model)
    trainer.train()
    after = weights(trainer.value_model)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert any("lora" in name for name in changed) and any("score" in name for name in changed)
    assert all("lora" in name or "modules_to_save" in name for name in changed)


def test_the_score_head_of_a_bf16_value_model_with_an_adapter_is_trained_in_fp32(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    policy = tiny_causal_lm(tiny_tokenizer()).bfloat16()
    trainer = ppo_trainer(tmp_path, model=policy, value_peft_config=config, total_episodes=4)
    trained = [parameter for parameter in trainer.value_model.parameters() if parameter.requires_grad]
    assert len(trained) == 5 and {parameter.dtype for parameter in trained} == {torch.float32}
    before = weights(trainer.value_model)
    trainer.train()
    changed = [name for name, value in before.items() if not torch.equal(value, weights(trainer.value_model)[name])]
    assert any("score.modules_to_save" in name for name in changed)


@pytest.mark.parametrize("init", ["reward", "policy"])
def test_value_model_beside_a_bf16_policy_with_an_adapter_is_trained_in_fp32(tmp_path, init):
    """In bf16, a step of 1e-5 would be lost in nearly all weights."""
    modules = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}  # a copy of it is trained in bf16
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **modules)
    models = tiny_causal_lm(tiny_tokenizer()).bfloat16(), tiny_reward_model(tiny_tokenizer(), seed=3).bfloat16()
    options = {"peft_config": config, "value_model_init": init, "learning_rate": 1e-5}
    trainer = ppo_trainer(tmp_path, model=models[0], reward_model=models[1], **options)
    assert {parameter.dtype for parameter in trainer.value_model.parameters()} == {torch.float32}
    before = weights(trainer.value_model)
    trainer.train()
    layers = [name for name in before if "proj" in name]
    assert layers
    for name in layers:
        changed = (weights(trainer.value_model)[name] != before[name]).float().mean()
        assert changed > 0.9, name


def test_value_model_trains_with_gradient_checkpointing(tmp_path, monkeypatch):
    trainer = ppo_trainer(tmp_path, gradient_checkpointing=True)
    layer = trainer.value_model.model.layers[0]
    calls = []
    checkpoint = layer._gradient_checkpointing_func
    monkeypatch.setattr(layer, "_gradient_checkpointing_func", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    trainer.train()
    assert trainer.value_model.training and len(calls) >= 12


# The reference policy


@pytest.mark.parametrize("tied", [False, True])
def test_reference_also_has_its_lm_head_in_fp32(tmp_path, tied):
    model = tiny_causal_lm(tiny_tokenizer(), tie_word_embeddings=tied).to(torch.bfloat16)
    trainer = ppo_trainer(tmp_path, model=model, cast_lm_head_to_fp32=True, temperature=1.0)
    trainer.train()
    first, *others = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert first == 0 and any(others)
    assert trainer.ref_model.get_input_embeddings().weight.dtype == torch.bfloat16


# Dropout


def test_dropout_of_adapters_is_disabled(tmp_path):
    config = {"r": 2, "target_modules": ["q_proj"], "lora_dropout": 0.5}
    probabilities = set()

    class Reader(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for model in (trainer.policy_model, trainer.value_model):
                probabilities.update(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))

    trainer = ppo_trainer(
        tmp_path,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **config),
        value_peft_config=LoraConfig(**config),
        callbacks=[Reader()],
    )
    trainer.train()
    assert probabilities == {0.0}


def test_dropout_that_layers_store_as_a_number_is_disabled(tmp_path):
    model, reward_model = tiny_causal_lm(tiny_tokenizer()), tiny_reward_model(tiny_tokenizer(), seed=3)
    for layer in (*model.model.layers, *reward_model.model.layers):
        layer.self_attn.attention_dropout = 0.5
    trainer = ppo_trainer(tmp_path, model=model, reward_model=reward_model, learning_rate=1e-12)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["objective/kl"] == pytest.approx(0, abs=1e-6) and row["policy/approxkl_avg"] < 1e-9
    for trained in (trainer.policy_model, trainer.value_model):
        assert {layer.self_attn.attention_dropout for layer in trained.model.layers} == {0.5}  # as before
