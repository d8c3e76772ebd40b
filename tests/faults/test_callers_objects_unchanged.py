"""The caller's models, configurations, tokenizers and datasets are as they were. Nothing to train is an error."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, TrainerCallback

from tests.ppo_runs import ppo_config, ppo_trainer, prompts, weights
from tests.reward_runs import (
    SETTINGS,
    SameText,
    policy_samples,
    preferences,
    rlp_trainer,
)
from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp import (
    EmbeddingEquivalence,
    NLIEquivalence,
    PPOTrainer,
    RewardFunction,
    RLPPPOConfig,
    RLPPPOTrainer,
    RLPRewardConfig,
    RLPRewardTrainer,
    gate,
    sample_completions,
    score,
    synthesize_preferences,
)
from trl_rlp.data.judges.language_model import language_model_judge
from trl_rlp.evaluation.policy_metrics import kl_to_reference
from trl_rlp.rewards.standardization import standardize
from trl_rlp.stages.reward_model import build_reward_trainer


TOKENIZER = tiny_tokenizer()


def with_mixed_flags(model: nn.Module) -> nn.Module:
    """Trains a part of the model and puts another part into training mode, so that a change of either shows."""
    for row, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(row % 3 > 0)
    list(model.children())[0].train()
    return model


def describe_model(model: nn.Module) -> dict:
    """Returns everything about a model except the values of its weights."""
    description = {
        "parameters": {n: (p.requires_grad, p.dtype, p.device, p.shape) for n, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "modules": {name: type(module) for name, module in model.named_modules()},
        "has its own forward": ["forward" in vars(m) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "numbers": [{k: v for k, v in vars(m).items() if isinstance(v, (int, float))} for m in model.modules()],
        "config": copy.deepcopy(model.config.to_dict()),
    }
    for numbers in description["numbers"]:
        numbers.pop("training", None)
    if model.can_generate():
        description["generation_config"] = model.generation_config.to_dict()
    return description


def describe_tokenizer(tokenizer) -> dict:
    names = ("padding_side", "truncation_side", "pad_token", "eos_token", "chat_template", "model_max_length")
    return {name: getattr(tokenizer, name) for name in names} | {"vocabulary": tokenizer.get_vocab()}


# PPO


@pytest.mark.parametrize(
    "settings", [{}, {"cast_lm_head_to_fp32": True}, {"bf16": True}], ids=["plain", "head in fp32", "bf16"]
)
def test_ppo_leaves_reward_and_reference_model_as_they_were(tmp_path, settings):
    """
    A user passes `ref_model` and `reward_model`. They stayed frozen, without dropout, and with another LM head. In
    bf16, the reference kept a `forward` with autocast. It also kept accelerate's mark of a prepared model. As the
    policy of a later run on two processes, it was not wrapped, so each process trained another policy.
    """
    models = {
        "ref_model": with_mixed_flags(tiny_causal_lm(TOKENIZER, seed=1, attention_dropout=0.1, pad_token_id=None)),
        "reward_model": with_mixed_flags(tiny_reward_model(TOKENIZER, seed=3, attention_dropout=0.1)),
    }
    before = {name: describe_model(model) for name, model in models.items()}
    trainer = ppo_trainer(
        tmp_path, total_episodes=4, normalize_rewards=True, standardize_rewards=True, **models, **settings
    )
    assert {name: describe_model(model) for name, model in models.items()} == before
    trainer.train()
    assert {name: describe_model(model) for name, model in models.items()} == before


def test_ppo_changes_of_trained_models_only_what_training_changes(tmp_path):
    """A user passes policy and value model. Dropout and the value model's pad token stay as they were."""
    config = {"attention_dropout": 0.1, "pad_token_id": None}
    policy, value_model = tiny_causal_lm(TOKENIZER, **config), tiny_reward_model(TOKENIZER, seed=4, **config)
    trainer = ppo_trainer(tmp_path, model=policy, value_model=value_model, total_episodes=4)
    assert not any(module.training for module in value_model.modules())
    trainer.train()
    assert value_model.config.pad_token_id is None
    for model in (policy, value_model):
        assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.1}
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_policy_keeps_its_dropout(tmp_path):
    """A user goes on with the policy after PPO. Dropout layers stayed at 0, and only the other dropout came back."""
    config = {
        "vocab_size": len(TOKENIZER),
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "eos_token_id": TOKENIZER.eos_token_id,
    }
    policy = GPT2LMHeadModel(GPT2Config(**config))
    trainer = ppo_trainer(tmp_path, model=policy, total_episodes=4, callbacks=[DropoutInTraining()])
    trainer.train()
    assert trainer.args.disable_dropout
    assert {layer.p for layer in policy.modules() if isinstance(layer, nn.Dropout)} == {0.1}


class DropoutInTraining(TrainerCallback):
    """Checks that dropout is off in a training step."""

    def on_step_end(self, args, state, control, model, **kwargs):
        assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.0}


def test_a_reward_model_is_refined_after_ppo(tmp_path):
    """A user trains a policy and then refines the same reward model. Nothing moved, and `uml` did not say so."""
    reward_model, reference = tiny_reward_model(TOKENIZER, seed=3), tiny_causal_lm(TOKENIZER, seed=1)
    ppo_trainer(tmp_path / "ppo", total_episodes=4, reward_model=reward_model, ref_model=reference).train()
    before = weights(reward_model)
    rlp_trainer(tmp_path / "refined", model=reward_model, method="uml", max_steps=2).train()
    assert all(not torch.equal(weight, before[name]) for name, weight in weights(reward_model).items())
    before = weights(reference)
    ppo_trainer(tmp_path / "again", model=reference, total_episodes=4).train()
    assert all(not torch.equal(weight, before[name]) for name, weight in weights(reference).items())


@pytest.mark.parametrize(
    "adapters", [{}, {"model_adapter_name": "one", "ref_adapter_name": "two"}], ids=["base", "two"]
)
def test_weights_that_the_user_froze_in_an_adapter_stay_frozen(tmp_path, adapters):
    """A user freezes the first matrix of LoRA. PEFT makes all of an adapter trainable after the reference has run."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_lm(TOKENIZER), config, adapter_name="one")
    model.add_adapter("two", config)
    trainer = ppo_trainer(tmp_path, model=model, total_episodes=4, **adapters)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B.one" in name)
    trainer.train()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_B.one" in name
    }


def test_ppo_leaves_configurations_lists_and_datasets_as_they_were(tmp_path):
    """A user builds two trainers from the same arguments. The first one must not change them."""
    args = ppo_config(tmp_path, total_episodes=4, logging_steps=0.5)
    arguments = {
        "value_peft_config": LoraConfig(task_type="SEQ_CLS"),
        "reward_funcs": [lambda completions, **_: [0.0] * len(completions)],
        "callbacks": [],
        "reward_processing_class": [None, None],
    }
    data, reward_tokenizer = prompts(), tiny_tokenizer(pad_is_eos=True)
    arguments["reward_processing_class"][0] = reward_tokenizer
    fields, lists = copy.deepcopy(vars(args)), {n: list(v) for n, v in arguments.items() if isinstance(v, list)}
    adapter, columns = arguments["value_peft_config"].to_dict(), (data.column_names, data.format, data.to_list())
    tokenizer = describe_tokenizer(reward_tokenizer)
    trainer = PPOTrainer(
        args,
        TOKENIZER,
        tiny_causal_lm(TOKENIZER),
        reward_model=tiny_reward_model(TOKENIZER, seed=3),
        train_dataset=data,
        **arguments,
    )
    trainer.train()
    changed = {name for name, value in vars(args).items() if str(value) != str(fields[name])}
    assert changed == set()
    assert {n: list(v) for n, v in arguments.items() if isinstance(v, list)} == lists
    assert arguments["value_peft_config"].to_dict() == adapter
    assert (data.column_names, data.format, data.to_list()) == columns
    assert describe_tokenizer(reward_tokenizer) == tokenizer


# Reward learning


def test_reward_learning_leaves_labeling_model_and_configuration_as_they_were(tmp_path):
    """A user passes a labeling model, an adapter's configuration and data. They are as they were after training."""
    labeler, tokenizer = with_mixed_flags(tiny_reward_model(TOKENIZER, seed=5)), tiny_tokenizer()
    args = RLPRewardConfig(str(tmp_path), method="uml+spg", **{**SETTINGS, "max_steps": 2})
    config = LoraConfig(r=2, target_modules=["q_proj"])
    samples, pairs = policy_samples(), preferences()
    before = describe_model(labeler), describe_tokenizer(tokenizer), config.to_dict()
    fields, rows = {n: str(v) for n, v in vars(args).items()}, (samples.to_list(), pairs.to_list())
    RLPRewardTrainer(
        tiny_reward_model(TOKENIZER),
        args,
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=config,
        policy_samples=samples,
        equivalence=SameText(),
        labeling_reward_model=labeler,
        labeling_processing_class=tokenizer,
    ).train()
    after = describe_model(labeler), describe_tokenizer(tokenizer), config.to_dict()
    assert after == before
    assert {n for n, value in vars(args).items() if str(value) != fields[n]} == set()
    assert (samples.to_list(), pairs.to_list()) == rows and samples.format == policy_samples().format


def test_a_stage_leaves_its_configuration_as_it_was(tmp_path):
    """A user builds two reward models with one configuration. The second one lost `model_init_kwargs`."""
    base = save(tiny_causal_lm(TOKENIZER), TOKENIZER, tmp_path / "base")
    config = RLPRewardConfig(str(tmp_path), method="none", model_init_kwargs={"dtype": "bfloat16"}, **SETTINGS)
    models = [build_reward_trainer(base, config, preferences()).model for _ in range(2)]
    assert [model.dtype for model in models] == [torch.bfloat16] * 2
    assert config.model_init_kwargs == {"dtype": "bfloat16"}


# Functions that only read a model


def tiny_encoder():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    return BertModel(config)


def standardize_rewards(model):
    reward = RewardFunction(model, TOKENIZER, [TOKENIZER.eos_token_id])
    standardize(
        [reward], tiny_causal_lm(TOKENIZER), TOKENIZER, prompts(3), {"num_generations": 2, "max_new_tokens": 3}
    )
    reward(["a"], ["b"], [[70, TOKENIZER.eos_token_id]])


QUESTIONS = (["Which?"] * 2, ["red", "blue"], ["blue", "red"])
POLICY = ("policy", lambda: tiny_causal_lm(TOKENIZER, attention_dropout=0.1))
REWARD = ("reward model", lambda: tiny_reward_model(TOKENIZER, seed=3, attention_dropout=0.1))
READERS = {
    "sample_completions": (
        *POLICY,
        lambda m: sample_completions(prompts(2), m, TOKENIZER, num_generations=2, max_new_tokens=3),
    ),
    "language_model_judge": (*POLICY, lambda m: language_model_judge(m, TOKENIZER, tolerance=1.0)(*QUESTIONS)),
    "kl_to_reference": (
        *POLICY,
        lambda m: kl_to_reference(m, tiny_causal_lm(TOKENIZER, seed=1), TOKENIZER, policy_samples()),
    ),
    "score": (*REWARD, lambda m: score(m, TOKENIZER, ["a", "b"], ["c", "d"])),
    "RewardFunction": (*REWARD, standardize_rewards),
    "gate": (*REWARD, lambda m: gate((m, TOKENIZER), (tiny_reward_model(TOKENIZER), TOKENIZER), preferences())),
    "synthesize_preferences": (
        *REWARD,
        lambda m: synthesize_preferences(
            policy_samples(), "spg", equivalence=SameText(), reward_model=m, reward_processing_class=TOKENIZER
        ),
    ),
    "NLIEquivalence": (
        "nli",
        lambda: tiny_nli(TOKENIZER),
        lambda m: NLIEquivalence(m, TOKENIZER).are_equivalent(*QUESTIONS),
    ),
    "EmbeddingEquivalence": (
        "encoder",
        tiny_encoder,
        lambda m: EmbeddingEquivalence(m, TOKENIZER, threshold=0.5).are_equivalent(*QUESTIONS),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_function_that_reads_a_model_leaves_it_as_it_was(name):
    """A user passes a model in training to a function. Flags, modes, configuration and tokenizer are as they were."""
    _, build, read = READERS[name]
    model = with_mixed_flags(build())
    before = describe_model(model), describe_tokenizer(TOKENIZER)
    read(model)
    assert (describe_model(model), describe_tokenizer(TOKENIZER)) == before


# Nothing to train


def frozen_adapter(model, folder, task_type: str) -> PeftModel:
    """Saves an adapter and loads it without `is_trainable`, so that all weights are frozen."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type=task_type)
    get_peft_model(copy.deepcopy(model), config).save_pretrained(folder)
    return PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize("is_adapter", [False, True], ids=["frozen", "adapter without is_trainable"])
def test_a_model_with_nothing_to_train_is_an_error(tmp_path, is_adapter):
    """A user passes a frozen model to train. PPO trained on, without a change of a weight."""

    def freeze(model, task_type):
        return frozen_adapter(model, tmp_path / task_type, task_type) if is_adapter else model.requires_grad_(False)

    policy = freeze(tiny_causal_lm(TOKENIZER), "CAUSAL_LM")
    classifier = freeze(tiny_reward_model(TOKENIZER), "SEQ_CLS")
    remedy = r"has nothing to train, .* frozen .*`{0}.requires_grad_\(True\)`.*`{1}`.*is_trainable=True"
    with pytest.raises(ValueError, match="`model` " + remedy.format("model", "peft_config")):
        ppo_trainer(tmp_path, model=policy)
    with pytest.raises(ValueError, match="`value_model` " + remedy.format("value_model", "value_peft_config")):
        ppo_trainer(tmp_path, value_model=classifier)
    for method in ("none", "uml"):
        with pytest.raises(ValueError, match="`model` " + remedy.format("model", "peft_config")):
            rlp_trainer(tmp_path, model=classifier, method=method)


def test_a_frozen_model_gets_an_adapter(tmp_path):
    """A user freezes a model and adds an adapter. There is something to train."""
    trainer = ppo_trainer(
        tmp_path,
        model=tiny_causal_lm(TOKENIZER).requires_grad_(False),
        value_model=tiny_reward_model(TOKENIZER).requires_grad_(False),
        peft_config=LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
        value_peft_config=LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"),
        total_episodes=4,
    )
    trainer.train()
    assert {name.rpartition(".lora_")[1] for name, p in trainer.model.named_parameters() if p.requires_grad} == {
        ".lora_"
    }


def test_a_frozen_policy_is_refused_before_algorithm_1_writes_anything(tmp_path):
    """A user passes a frozen policy to a run with RLP. Its folder stays empty."""
    folder = tmp_path / "ppo"
    with pytest.raises(ValueError, match="`model` has nothing to train"):
        ppo_trainer(
            folder,
            model=tiny_causal_lm(TOKENIZER).requires_grad_(False),
            trainer_class=RLPPPOTrainer,
            config_class=RLPPPOConfig,
            rlp_method="spg",
            preference_dataset=Dataset.from_list(preferences().to_list()),
            equivalence=SameText(),
        )
    assert not folder.exists()
