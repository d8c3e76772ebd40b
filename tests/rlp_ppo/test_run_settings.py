import functools
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from tests.ppo_runs import ppo_config, prompts
from tests.reward_runs import SameText, preferences
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.run_settings import (
    IRRELEVANT_PREFIXES,
    build_refinement_settings,
    build_reward_config,
    describe_run,
    fingerprint_argument,
)


# The refinement


def test_the_refinement_inherits_seed_device_and_tracker_from_the_policy_trainer(tmp_path):
    settings = {"seed": 7, "gradient_checkpointing": False, "rlp_method": "uml", "rlp_reward_args": {"max_steps": 3}}
    settings["trust_remote_code"] = True
    args = ppo_config(tmp_path, RLPPPOConfig, project="tried", run_name="first", **settings)
    config = build_reward_config(args)
    assert (config.seed, config.use_cpu, config.gradient_checkpointing, config.max_steps) == (7, True, False, 3)
    assert (config.project, config.run_name, config.trust_remote_code) == ("tried", "first", True)
    args.rlp_reward_args = {"seed": 8, "use_cpu": True}
    assert build_reward_config(args).seed == 8
    args.rlp_reward_args = {"bf16": True}
    with pytest.raises(ValueError, match="`rlp_reward_args` sets `bf16`=True, but the policy's trainer"):
        build_reward_config(args)


@pytest.mark.parametrize("base", [None, "another/model"])
def test_the_settings_of_the_refinement_are_those_of_the_run(tmp_path, base):
    args = ppo_config(
        tmp_path,
        RLPPPOConfig,
        rlp_method="spg",
        seed=7,
        rlp_num_generations=6,
        rlp_temperature=0.5,
        rlp_anchor_weight=2.0,
        rlp_refine_every=8,
        rlp_reward_base=base,
        rlp_reward_args={"confidence_threshold": 0.4},
    )
    config = build_reward_config(args)
    settings = build_refinement_settings(args, tmp_path / "initial_policy", config)
    assert settings.base_model == (base or tmp_path / "initial_policy")
    assert settings.config is config and (config.method, config.confidence_threshold) == ("spg", 0.4)
    prompt_and_stop = {"stop_token_ids": None, "chat_template_kwargs": None}
    expected = {"num_generations": 6, "temperature": 0.5, "max_new_tokens": 6, "seed": 7, **prompt_and_stop}
    assert settings.sampling == expected
    assert settings.seed == 7 and (settings.anchor_weight, settings.refine_every) == (2.0, 8)
    assert {"output_dir", "method"} & settings.args.keys() == set()
    assert (settings.args["confidence_threshold"], settings.args["use_cpu"]) == (0.4, True)


# What identifies a run


def describe(folder, arguments=None, policy_seed=0, data=None, pairs=None, equivalence=None, **settings):
    return describe_run(
        ppo_config(folder, RLPPPOConfig, rlp_method="uml", **settings),
        tiny_causal_lm(tiny_tokenizer(), seed=policy_seed),
        tiny_tokenizer(),
        prompts() if data is None else data,
        preferences(4) if pairs is None else pairs,
        equivalence,
        {"peft_config": None} if arguments is None else arguments,
    )


def find_differences(first: dict, second: dict) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


def test_settings_that_do_not_decide_the_result_may_change(tmp_path):
    changed = {"logging_steps": 5, "save_steps": 3, "eval_steps": 2, "dataloader_num_workers": 1, "run_name": "b"}
    changed |= {"vllm_server_host": "other", "vllm_server_port": 1, "vllm_server_timeout": 1.0, "vllm_group_port": 1}
    changed |= {"vllm_server_base_url": "http://other", "vllm_gpu_memory_utilization": 0.2}
    changed |= {"vllm_tensor_parallel_size": 2, "vllm_enable_sleep_mode": True}
    changed |= {"local_rollout_forward_batch_size": 1, "torch_empty_cache_steps": 1, "skip_memory_metrics": False}
    first, second = describe(tmp_path / "a"), describe(tmp_path / "b", disable_tqdm=False, **changed)
    assert find_differences(first, second) == set()


CHANGES = {
    "args.kl_coef": {"kl_coef": 0.3},
    "args.seed": {"seed": 1},
    "args.rlp_reward_args": {"rlp_reward_args": {"max_steps": 3}},
    "args.rlp_rounds": {"rlp_rounds": 2},
    "policy": {"policy_seed": 1},
    "prompts": {"data": prompts(7)},
    "preference_dataset": {"pairs": preferences(5)},
    "equivalence": {"equivalence": SameText()},
    "peft_config": {"arguments": {"peft_config": LoraConfig(r=2)}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_everything_else_identifies_the_run(tmp_path, name):
    assert find_differences(describe(tmp_path), describe(tmp_path, **CHANGES[name])) == {name}


def test_a_configuration_that_a_trainer_has_used_describes_the_same_run(tmp_path):
    """A trainer writes its batch sizes into the configuration."""
    args = ppo_config(tmp_path, RLPPPOConfig, rlp_method="uml")
    first = [tiny_causal_lm(tiny_tokenizer()), tiny_tokenizer(), prompts(), preferences(4), None, {}]
    before = describe_run(args, *first)
    args.batch_size, args.num_total_batches = 123, 45
    assert describe_run(args, *first) == before


@pytest.mark.parametrize("prefix", IRRELEVANT_PREFIXES)
def test_every_prefix_belongs_to_a_field(prefix):
    assert any(field.name.startswith(prefix) for field in fields(RLPPPOConfig))


REWARD_OPTIONS = {"mean": 1.0, "standard_deviation": 2.0, "max_length": 8, "name": "other"}


def test_reward_functions_of_a_model_are_compared_by_what_they_score(tmp_path):
    tokenizer = tiny_tokenizer()

    def fingerprint(seed=1, is_standardized=False, **options):
        function = RewardFunction(tiny_reward_model(tokenizer, seed=seed), tokenizer, [1], **options)
        return fingerprint_argument([function], is_standardized)

    changed = [fingerprint(**{name: value}) for name, value in REWARD_OPTIONS.items()]
    others = [fingerprint(), fingerprint(seed=2), *changed]
    assert fingerprint() == fingerprint() and len({str(other) for other in others}) == 6
    # `standardize_rewards` ignores the scale, and replaces it in the user's object.
    assert fingerprint(mean=1.0, is_standardized=True) == fingerprint(is_standardized=True)


def test_paths_and_named_functions_are_compared_by_their_names():
    assert fingerprint_argument([Path("a"), Path("b")]) == ["a", "b"]
    reward = functools.partial(len)
    reward.__name__ = "length"
    assert fingerprint_argument(reward) == "length"


def test_fingerprints_of_different_arguments_differ():
    names = [f"layer_{index}" for index in range(50)]  # PEFT keeps them as a set, whose order depends on the insertion
    first, second = (LoraConfig(r=2, target_modules=order) for order in (names, names[::-1]))
    assert fingerprint_argument(first) == fingerprint_argument(second)
    assert fingerprint_argument(first) != fingerprint_argument(LoraConfig(r=4, target_modules=names))
    assert fingerprint_argument([None, "folder", len]) == [None, "folder", "len"]
    tokenizer = tiny_tokenizer()
    assert fingerprint_argument(tokenizer) == fingerprint_argument(tiny_tokenizer())
    assert fingerprint_argument(tokenizer) != fingerprint_argument(tiny_tokenizer(offset=3))
    models = [tiny_reward_model(tokenizer, seed=seed) for seed in (0, 0, 1)]
    assert fingerprint_argument(models[0]) == fingerprint_argument(models[1]) != fingerprint_argument(models[2])
    assert fingerprint_argument(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)) == "SGD"
