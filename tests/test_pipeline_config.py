import importlib.util
import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from trl_rlp.pipeline_config import RLPConfig


def config(**overrides):
    return RLPConfig(**{"output_dir": "out", "sft_model": "model", **overrides})


def test_the_defaults_are_those_of_the_paper():
    settings = config()
    assert (settings.method, settings.num_generations) == ("spg", 10)
    assert (settings.temperature, settings.evaluation_temperature) == (1.0, 0.7)
    assert settings.reward_config().confidence_threshold == 0.5
    assert settings.reward_config().representation_coef == 0.5


def test_the_command_line_passes_mappings_as_json_text():
    settings = config(reward_args='{"learning_rate": 1e-5}', policy_peft='{"r": 4}')
    assert settings.reward_config().learning_rate == 1e-5
    assert settings.lora("policy").r == 4 and settings.lora("reward") is None


def test_a_lora_reward_model_keeps_its_score_head():
    lora = config(reward_peft={"r": 4}).lora("reward")
    assert lora.modules_to_save == ["score"] and lora.task_type == "SEQ_CLS"


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"method": "none"}, "`method` must be one of"),
        ({"policy_trainer": "reinforce"}, "`policy_trainer` must be one of"),
        ({"num_generations": 1}, "`num_generations` must be at least 2, got 1"),
        ({"temperature": 0.0}, "`temperature` must be above 0, got 0"),
        ({"anchor_weight": -1.0}, "`anchor_weight` must be at least 0, got -1.0"),
        ({"refine_every": 0}, "`refine_every` must be at least 1, got 0"),
        ({"sample_from": "policies"}, r"`sample_from` must be one of \('policy', 'sft'\), got 'policies'"),
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
        (
            {"anchor_weight": 3.0, "policy_args": {"reward_weights": [2.0]}},
            r"`policy_args.reward_weights` is \[2.0\], but `anchor_weight`=3.0 sets the weights",
        ),
        (
            {"refine_every": 8, "method": "uml", "policy_args": {"num_generations": 1}},
            "`policy_args.num_generations` is 1, but with `refine_every` and the method 'uml' the views",
        ),
        (
            {"refine_every": 8, "reward_args": {"use_cpu": True}},
            "`policy_args.use_cpu` is False and `reward_args.use_cpu`",
        ),
        ({"refine_every": 8, "reward_args": {"redraw_rejected": True}}, "`reward_args.redraw_rejected` is True, but"),
        ({"heldout_share": 1.0}, r"`heldout_share` must be in \(0, 1\), got 1"),
        ({"reward_args": "{lr: 1"}, "`reward_args` is not JSON"),
        ({"reward_args": {"lerning_rate": 1}}, r"`reward_args` has \['lerning_rate'\], which RLPRewardConfig"),
        ({"policy_args": {"kl": 1}}, r"`policy_args` has \['kl'\], which PPOConfig does not have"),
        ({"policy_args": {"learning_rat": 1}}, "Did you mean `learning_rate`?"),
        (
            {"policy_args": {"rlp_method": "spg"}},
            r"`policy_args` has \['rlp_method'\], which PPOConfig does not have. Set `method` .* of RLPConfig instead",
        ),
        ({"reward_peft": {"rank": 1}}, r"`reward_peft` has \['rank'\], which LoraConfig does not have"),
        ({"policy_args": {"output_dir": "x"}}, r"`policy_args` may not set \['output_dir'\]"),
        ({"reward_args": {"confidence_threshold": 1.5}}, "confidence_threshold"),
        ({"inference_dtype": "int8"}, "`inference_dtype` must be one of .*, got 'int8'"),
        ({"policy_args": {"inference_dtype": "float32"}}, r"`policy_args` may not set \['inference_dtype'\]"),
        (
            {"model_args": {"dtyp": "auto"}},
            r"`model_args` has \['dtyp'\], which ModelConfig does not have. Did you mean",
        ),
        ({"model_args": {"dtype": "int8"}}, "`model_args.dtype` must be one of"),
        (
            {"model_args": {"model_name_or_path": "x"}},
            "`model_args` may not set `model_name_or_path`. Use `sft_model`",
        ),
        ({"model_args": {"load_in_4bit": True}}, "may not set `load_in_4bit`, because the stages merge adapters and"),
    ],
)
def test_wrong_settings_are_named_before_any_work(overrides, match):
    with pytest.raises(ValueError, match=match):
        config(**overrides)


def test_a_mapping_of_the_wrong_type_is_a_type_error():
    with pytest.raises(TypeError, match="`reward_args` must be a mapping"):
        config(reward_args=[1])


@pytest.mark.parametrize("name", ["sft_model", "reward_base_model"])
def test_a_model_is_a_folder_or_a_name(name):
    with pytest.raises(TypeError, match=f"`{name}` must be text, got `Linear`. Pass a folder or a Hub name"):
        config(**{name: torch.nn.Linear(1, 1)})
    assert getattr(config(**{name: Path("folder")}), name) == "folder"


def test_model_args_reach_the_models_that_are_trained_and_those_that_only_infer():
    names = {"dtype": "bfloat16", "attn_implementation": "eager", "model_revision": "v1"}
    settings = config(
        model_args=names, policy_args={"model_init_kwargs": {"revision": "v2"}, "trust_remote_code": True}
    )
    trained = {"dtype": "bfloat16", "attn_implementation": "eager", "revision": "v1"}
    for args in (settings.first_reward_args(), settings.refinement_settings().args):
        assert args["model_init_kwargs"] == trained
    assert settings.reward_config().model_init_kwargs == trained
    assert settings.policy_arguments()["args"]["model_init_kwargs"] == {**trained, "revision": "v2"}
    assert settings.policy_config().model_init_kwargs == {**trained, "revision": "v2"}
    options = {"attn_implementation": "eager", "revision": "v1", "trust_remote_code": True}
    assert settings.model_options() == settings.policy_arguments()["model_options"] == options
    settings.inference_dtype = "float32"
    assert settings.refinement_settings().model_options == {**options, "dtype": "float32"}


def test_without_model_args_the_trainers_keep_their_defaults():
    settings = config()
    assert settings.model_options() == {} and "model_init_kwargs" not in settings.policy_arguments()["args"]
    assert settings.reward_config().model_init_kwargs is None


def test_model_args_can_describe_the_adapters_of_both_models():
    settings = config(model_args='{"use_peft": true, "lora_r": 4}', policy_peft={"r": 8})
    assert settings.lora("policy").r == 8
    assert settings.lora("reward").r == 4 and settings.lora("reward").task_type == "SEQ_CLS"
    assert settings.lora("reward").modules_to_save == ["score"]


def test_every_field_has_its_help():
    assert all(entry.metadata["help"] for entry in fields(RLPConfig))


def test_numbers_that_yaml_reads_as_text_are_numbers():
    settings = RLPConfig("run", "sft", reward_args={"learning_rate": "1e-5"}, policy_args={"learning_rate": "3e-6"})
    assert settings.reward_args["learning_rate"] == 1e-5 and settings.policy_args["learning_rate"] == 3e-6
    with pytest.raises(ValueError, match="`reward_args.learning_rate` must be a number, got 'fast'"):
        RLPConfig("run", "sft", reward_args={"learning_rate": "fast"})
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        RLPConfig("run", "sft", seed=-1)


def test_sampling_has_the_prompt_and_stop_of_the_policys_training():
    plain = RLPConfig("run", "sft").sampling()
    assert {"chat_template_kwargs", "stop_token_ids"} & plain.keys() == set()
    kwargs = {"enable_thinking": False}
    config = RLPConfig("run", "sft", policy_args={"chat_template_kwargs": kwargs, "stop_token_id": 7})
    prompt_and_stop = {"chat_template_kwargs": kwargs, "stop_token_ids": [7]}
    assert config.sampling() == {**plain, **prompt_and_stop}
    engine = {"engine": "transformers", "engine_args": None}
    assert config.refinement_settings().sampling == {**plain, **prompt_and_stop, **engine, "temperature": 1.0}
    assert RLPConfig("run", "sft", method="uml", policy_args={"stop_token": None}).sampling()["stop_token_ids"] == []


def test_the_engine_samples_saved_policies_only():
    """Rewards are standardized on samples of a model that is loaded already."""
    arguments = {"base_url": "http://localhost:8000/v1"}
    settings = RLPConfig("run", "sft", engine="server", engine_args=json.dumps(arguments), standardize_rewards=True)
    chosen = {"engine": "server", "engine_args": arguments}
    assert chosen.items() <= settings.refinement_settings().sampling.items()
    assert chosen.items() <= settings.engine_sampling(0.7).items()
    assert "engine" not in settings.policy_arguments()["standardize_with"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"engine": "sglang"}, "`engine` must be one of"),
        ({"engine": "server"}, "`engine`='server' needs the address of the server"),
        ({"engine_args": {"x": 1}}, "`engine_args` has .'x'., but the engine 'transformers' has no arguments"),
        ({"tokens_per_batch": 0}, "`tokens_per_batch` must be above 0, got 0"),
        (
            {"engine": "server", "engine_args": {"base_url": "x"}, "policy_args": {"stop_token_id": 7}},
            r"`policy_args` sets \['stop_token_ids'\], which does not reach a server",
        ),
    ],
)
def test_engines_that_do_not_fit_are_named_before_any_work(arguments, match):
    with pytest.raises(ValueError, match=match):
        RLPConfig("run", "sft", **arguments)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_named_before_any_work():
    with pytest.raises(ImportError, match="`engine`='vllm' needs vLLM, which is not installed"):
        RLPConfig("run", "sft", engine="vllm")


@pytest.mark.parametrize("policy_trainer", ["ppo", "rloo", "grpo"])
def test_the_policy_is_trained_on_completions_of_the_sampled_length(policy_trainer):
    def read_length(**policy_args):
        config = RLPConfig("run", "sft", policy_trainer=policy_trainer, max_new_tokens=40, policy_args=policy_args)
        return config.policy_arguments()["args"]

    assert read_length() == {"max_completion_length": 40}
    assert read_length(max_completion_length=5) == {"max_completion_length": 5}
    if policy_trainer == "ppo":
        assert read_length(response_length=5) == {"response_length": 5}
    assert read_length(max_completion_length=None) == {"max_completion_length": 40}


def test_grpo_that_divides_by_the_deviation_is_warned_of_once(caplog):
    """With it, neither the weight of the anchor reward nor that of the KL divergence has a fixed strength."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        none = {"scale_rewards": "none"}
        config(policy_trainer="grpo", refine_every=8)
        config(policy_trainer="rloo", anchor_weight=2.5)
        config(policy_trainer="grpo", anchor_weight=2.5, policy_args=none)
        assert not caplog.records
        config(policy_trainer="grpo", anchor_weight=2.5)
        config(policy_trainer="grpo", anchor_weight=2.5)
        config(
            policy_trainer="grpo",
            anchor_weight=2.25,
            policy_args={**none, "multi_objective_aggregation": "normalize_then_sum"},
        )
    finally:
        logger.removeHandler(caplog.handler)
    assert ["anchor_weight`=2.5" in caplog.messages[0], "anchor_weight`=2.25" in caplog.messages[1]] == [True, True]
    assert len(caplog.messages) == 2 and '{"scale_rewards": "none"}' in caplog.text


def test_step_4_and_step_5_have_the_settings_of_the_loop():
    plain, loop = config().refinement_settings(), config(anchor_weight=3.0, refine_every=8).refinement_settings()
    assert (plain.anchor_weight, plain.refine_every, plain.is_in_loop, plain.needs_anchors) == (
        0.0,
        None,
        False,
        False,
    )
    assert (loop.anchor_weight, loop.refine_every, loop.is_in_loop, loop.needs_anchors) == (3.0, 8, True, True)
    assert plain.trains_first_policy and not config(sample_from="sft").refinement_settings().trains_first_policy
    views = {"method": "uml", "policy_args": {"num_generations": 2}}
    refined = config(refine_every=8, **views).refinement_settings()
    assert refined.is_in_loop and not refined.needs_anchors and not refined.needs_equivalence
    assert config(anchor_weight=1.0, **views).refinement_settings().needs_equivalence
