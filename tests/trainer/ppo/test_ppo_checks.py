"""Arguments of the PPO trainer that do not fit are refused before any work."""

from types import SimpleNamespace

import pytest
from accelerate import DistributedType
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from trl import GRPOConfig

from tests.ppo_runs import ppo_config, ppo_trainer, prompts
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp import PPOTrainer, RLPPPOConfig, RLPPPOTrainer
from trl_rlp.trainer.ppo.ppo_checks import require_backend, require_value_adapter


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


@pytest.mark.parametrize("argument", ["train_dataset", "eval_dataset"])
def test_dataset_of_another_type_is_named(tmp_path, argument):
    rows = [{"prompt": "a"}] * 8
    arguments = {"data": rows} if argument == "train_dataset" else {"eval_dataset": rows}
    with pytest.raises(TypeError, match=f"`{argument}` must be a `Dataset` or an `IterableDataset`, got `list`"):
        ppo_trainer(tmp_path, **arguments)


def test_splits_instead_of_prompts_are_named(tmp_path):
    splits = DatasetDict(train=prompts(), test=prompts())
    with pytest.raises(
        TypeError, match=r"`train_dataset` is a `DatasetDict` .*\['train', 'test'\].*train_dataset\['train'\]"
    ):
        ppo_trainer(tmp_path, data=splits)
    ppo_trainer(tmp_path, eval_dataset=splits)


def test_function_as_reward_model_is_named(tmp_path):
    with pytest.raises(TypeError, match="`reward_model` is a function. Pass functions in `reward_funcs`"):
        ppo_trainer(tmp_path, reward_model=lambda completions, **kwargs: [0.0])


@pytest.mark.parametrize("argument", ["reward_model", "value_model"])
def test_language_model_is_not_taken_for_a_classifier(tmp_path, argument):
    with pytest.raises(ValueError, match=f"`{argument}` is a `LlamaForCausalLM`, a language model"):
        ppo_trainer(tmp_path, **{argument: tiny_causal_lm(tiny_tokenizer(), seed=5)})


def test_folder_of_a_reward_model_is_not_loaded_as_a_policy(tmp_path):
    save(tiny_reward_model(tiny_tokenizer()), tiny_tokenizer(), tmp_path / "reward")
    with pytest.raises(ValueError, match="reward' is not a causal LM"):
        ppo_trainer(tmp_path / "run", model=str(tmp_path / "reward"))


def test_configuration_of_another_trainer_is_named(tmp_path):
    """A setting of RLP would be ignored in silence, and GRPO's configuration lacks fields."""
    with pytest.raises(ValueError, match=r"`PPOTrainer` ignores \['rlp_method'\] of `RLPPPOConfig`"):
        ppo_trainer(tmp_path, config_class=RLPPPOConfig, rlp_method="spg")
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match="`args` must be a `PPOConfig` for `PPOTrainer`, got `GRPOConfig`"):
        PPOTrainer(args, tiny_tokenizer(), tiny_causal_lm(tiny_tokenizer()))
    with pytest.raises(TypeError, match="`args` must be a `RLPPPOConfig` for `RLPPPOTrainer`, got `PPOConfig`"):
        ppo_trainer(tmp_path, trainer_class=RLPPPOTrainer)


# Distributed training


def test_full_value_model_under_deepspeed_is_refused(tmp_path):
    """Each process would hold it in full: 8 billion weights are 128 GB."""
    config, adapter = ppo_config(tmp_path), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    config.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    with pytest.raises(
        ValueError, match=r"`value_peft_config` \(`policy_peft` of a pipeline\) is None under DeepSpeed"
    ):
        PPOTrainer(
            config, tiny_tokenizer(), tiny_causal_lm(tiny_tokenizer()), reward_funcs=[len], train_dataset=prompts()
        )
    require_value_adapter(config, None, adapter)
    require_value_adapter(config, get_peft_model(tiny_reward_model(tiny_tokenizer()), adapter), None)
    require_value_adapter(ppo_config(tmp_path), None, None)


def test_a_schedule_of_deepspeed_is_refused(tmp_path):
    plugin = SimpleNamespace(deepspeed_config={"scheduler": {"type": "WarmupLR"}})
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin), num_processes=2
    )
    with pytest.raises(ValueError, match="The DeepSpeed configuration has a `scheduler`, which would count optimizer"):
        require_backend(accelerator, ppo_config(tmp_path))


@pytest.mark.parametrize(
    "distributed_type, version, settings, message",
    [
        (DistributedType.FSDP, 1, {}, "`fsdp_version` is 1, .* Set it to 2"),
        (DistributedType.FSDP, 2, {"cast_lm_head_to_fp32": True}, "`cast_lm_head_to_fp32` is True, but FSDP"),
        (DistributedType.DEEPSPEED, 2, {"cast_lm_head_to_fp32": True}, "`cast_lm_head_to_fp32` is True, but FSDP"),
        (DistributedType.MULTI_GPU, 1, {"save_on_each_node": True}, "`save_on_each_node` is True, but transformers"),
        (DistributedType.FSDP, 2, {}, None),
        (DistributedType.MULTI_GPU, 1, {"cast_lm_head_to_fp32": True}, None),
    ],
)
def test_distributed_training_that_cannot_work_is_refused(tmp_path, distributed_type, version, settings, message):
    plugins = SimpleNamespace(fsdp_version=version), SimpleNamespace(deepspeed_config={"optimizer": {}})
    state = SimpleNamespace(fsdp_plugin=plugins[0], deepspeed_plugin=plugins[1])
    accelerator = SimpleNamespace(distributed_type=distributed_type, state=state, num_processes=2)
    args = ppo_config(tmp_path, **settings)
    if message is None:
        return require_backend(accelerator, args)
    with pytest.raises(ValueError, match=message):
        require_backend(accelerator, args)


@pytest.mark.parametrize("argument", ["model", "ref_model", "reward_model", "value_model"])
def test_models_that_are_split_already_are_refused(tmp_path, argument):
    """DeepSpeed gives an id to each parameter that it splits among the processes, and leaves it empty."""
    build = tiny_causal_lm if argument in ("model", "ref_model") else tiny_reward_model
    model = build(tiny_tokenizer(), seed=7)
    next(model.parameters()).ds_id = 0
    with pytest.raises(ValueError, match=f"`{argument}` is sharded already.*zero3_init_flag: false"):
        ppo_trainer(tmp_path, **{argument: model})
