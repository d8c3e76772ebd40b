"""Fields of the PPO configuration: defaults, documentation, ranges, and how they become those of GRPO."""

import re
from dataclasses import fields

import pytest
from trl import GRPOConfig, TrlParser

from tests.ppo_runs import SETTINGS, ppo_config
from trl_rlp.losses.kl import KL_ESTIMATORS
from trl_rlp.trainer.ppo.ppo_config import (
    LOSS_NORMALIZATIONS,
    REPLACED,
    SCORE_POSITIONS,
    UNUSED,
    VALUE_MODEL_INITS,
    PPOConfig,
)


GRPO_FIELDS = {field.name: field for field in fields(GRPOConfig)}
FIELDS = {field.name: field for field in fields(PPOConfig)}
ADDED_OR_CHANGED = sorted(
    name for name in FIELDS if name not in GRPO_FIELDS or FIELDS[name].default != GRPO_FIELDS[name].default
)
TRL_1_12_FIELDS = {
    "num_mini_batches": 1,
    "total_episodes": None,
    "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10,
    "response_length": 53,
    "stop_token_id": None,
    "temperature": 0.7,
    "missing_eos_penalty": None,
    "sft_model_path": "EleutherAI/pythia-160m",
    "num_total_batches": None,
    "micro_batch_size": None,
    "local_batch_size": None,
    "batch_size": None,
    "local_mini_batch_size": None,
    "mini_batch_size": None,
    "push_to_hub": False,
    "reward_model_path": "EleutherAI/pythia-160m",
    "model_adapter_name": None,
    "ref_adapter_name": None,
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "ds3_gather_for_generation": True,
    "dataset_num_proc": None,
    "learning_rate": 3e-6,
    "logging_steps": 10,
    "gradient_checkpointing": True,
}
"""Names and defaults of TRL 1.12's PPOConfig, without `stop_token`, whose default differs, and `world_size`."""


def read_docstring() -> dict[str, tuple[str, str]]:
    """Reads type and description of each parameter in the docstring."""
    pattern = r"^        (\w+) \((.+)\):\n((?:            .*\n)+)"
    found = re.findall(pattern, PPOConfig.__doc__, flags=re.M)
    return {name: (kind, " ".join(words.split())) for name, kind, words in found}


@pytest.mark.parametrize("name", ADDED_OR_CHANGED)
def test_help_and_docstring_agree(name):
    kind, words = read_docstring()[name]
    assert FIELDS[name].metadata["help"] == words
    if FIELDS[name].default is None:
        assert kind.endswith("*optional*")
    else:
        default = f"defaults to `{FIELDS[name].default!r}`".replace("'", '"').replace("3e-06", "3e-6")
        assert kind.endswith(f"*optional*, {default}")


def test_docstring_names_no_unknown_parameter():
    assert set(read_docstring()) <= set(FIELDS)


@pytest.mark.parametrize("name, default", TRL_1_12_FIELDS.items(), ids=TRL_1_12_FIELDS)
def test_fields_of_trl_1_12_have_their_defaults(name, default):
    assert FIELDS[name].default == default


def test_rollout_is_expressed_in_fields_of_grpo(tmp_path):
    """
    A rollout has four micro-batches of two completions. Each of the two mini-batches has two of them. There are three
    passes.
    """
    args = ppo_config(tmp_path, gradient_accumulation_steps=4, num_mini_batches=2, num_ppo_epochs=3)
    assert (args.steps_per_generation, args.gradient_accumulation_steps, args.num_iterations) == (4, 2, 3)
    assert args.generation_batch_size == 8
    assert args.steps_per_rollout == 6
    assert (args.num_generations, args.num_generations_eval, args.beta) == (1, 1, 0.0)


def test_length_of_a_completion_has_two_names(tmp_path):
    assert ppo_config(tmp_path).max_completion_length == 6
    assert ppo_config(tmp_path, max_completion_length=9).response_length == 9


def test_stop_token_id_replaces_eos(tmp_path):
    assert ppo_config(tmp_path).stop_token == "eos"
    assert ppo_config(tmp_path, stop_token_id=7).stop_token is None


def test_the_stop_tokens_of_sampling_are_those_of_the_configuration(tmp_path):
    assert ppo_config(tmp_path).stop_token_ids is None
    assert ppo_config(tmp_path, stop_token_id=7).stop_token_ids == [7]
    assert ppo_config(tmp_path, stop_token=None).stop_token_ids == []


def test_bf16_is_off_on_a_cpu(tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "bf16"}
    assert PPOConfig(str(tmp_path), **settings).bf16 is False


ALLOWED = {
    "kl_estimator": KL_ESTIMATORS,
    "score_position": SCORE_POSITIONS,
    "loss_normalization": LOSS_NORMALIZATIONS,
    "value_model_init": VALUE_MODEL_INITS,
}


@pytest.mark.parametrize("name, allowed", ALLOWED.items(), ids=ALLOWED)
def test_only_known_names_are_accepted(tmp_path, name, allowed):
    for value in allowed:
        assert vars(ppo_config(tmp_path, **{name: value}))[name] == value
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .*, got 'other'"):
        ppo_config(tmp_path, **{name: "other"})


@pytest.mark.parametrize(
    "name, value, match",
    [
        ("num_generations", 0, "at least 1, got 0"),
        ("temperature", 0.0, "above 0, got 0.0"),
        ("kl_coef", -0.1, "at least 0, got -0.1"),
        ("gamma", 1.1, "between 0 and 1, got 1.1"),
        ("lam", -0.1, "between 0 and 1, got -0.1"),
        ("cliprange", 0.0, "above 0, got 0.0"),
        ("cliprange_value", 0.0, "above 0 or None, got 0.0"),
        ("missing_eos_penalty", -1.0, "above 0 or None, got -1.0"),
        ("reward_clip", 0.0, "above 0 or None, got 0.0"),
        ("total_episodes", 0, "above 0 or None, got 0"),
        ("local_rollout_forward_batch_size", 0, "at least 1, got 0"),
        ("num_mini_batches", 3, "does not divide `gradient_accumulation_steps`=2"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, name, value, match):
    with pytest.raises(ValueError, match=rf"`{name}`.*{match}"):
        ppo_config(tmp_path, **{name: value})


@pytest.mark.parametrize("name", [*REPLACED, *UNUSED])
def test_fields_of_grpo_without_a_meaning_in_ppo_are_refused(tmp_path, name):
    values = {"loss_type": "grpo", "importance_sampling_level": "sequence", "scale_rewards": "none"}
    values |= {"multi_objective_aggregation": "normalize_then_sum"}
    default = GRPO_FIELDS[name].default
    value = values.get(name, True if default is False else 7)
    with pytest.raises(ValueError, match=rf"`{name}`=.* has no meaning in PPO. (Set .* instead|Leave it)"):
        ppo_config(tmp_path, **{name: value})


def test_rollout_of_one_completion_is_refused(tmp_path):
    with pytest.raises(ValueError, match="advantages of a rollout with one completion cannot be whitened"):
        ppo_config(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1)


def test_one_completion_on_each_of_several_processes_is_a_rollout(tmp_path, monkeypatch):
    monkeypatch.setattr(PPOConfig, "world_size", 8)
    args = ppo_config(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1)
    assert (args.generation_batch_size, args.num_generations) == (8, 1)


def test_adaptive_kl_coef_that_starts_at_0_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`kl_coef` is 0, where `adaptive_kl` leaves it"):
        ppo_config(tmp_path, adaptive_kl=True, kl_coef=0.0)


def test_horizon_that_is_too_short_for_a_rollout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`kl_horizon`"):
        ppo_config(tmp_path, adaptive_kl=True, kl_horizon=1, gradient_accumulation_steps=4)


def test_command_line_accepts_fields(tmp_path):
    options = ["--output_dir", str(tmp_path), "--kl_estimator", "clamped"]
    options += ["--use_cpu", "true", "--stop_token_id", "5"]
    (args,) = TrlParser((PPOConfig,)).parse_args_and_config(options)
    assert (args.kl_estimator, args.stop_token_id) == ("clamped", 5)


@pytest.mark.parametrize("settings", [{"stop_token": None}, {"stop_token_id": 5}])
def test_other_stop_tokens_are_refused_with_vllm(tmp_path, settings):
    with pytest.raises(ValueError, match="pass other stop tokens to vLLM in `generation_kwargs`"):
        ppo_config(tmp_path, use_vllm=True, **settings)
