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


GRPO = {field.name: field for field in fields(GRPOConfig)}
OURS = {field.name: field for field in fields(PPOConfig)}
OWN = sorted(name for name in OURS if name not in GRPO or OURS[name].default != GRPO[name].default)
FORMER = {
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
"""Names and defaults of TRL 1.12's PPOConfig, but for `stop_token`, whose default differs, and `world_size`."""


def documented() -> dict[str, tuple[str, str]]:
    pattern = r"^        (\w+) \((.+)\):\n((?:            .*\n)+)"
    found = re.findall(pattern, PPOConfig.__doc__, flags=re.M)
    return {name: (kind, " ".join(words.split())) for name, kind, words in found}


@pytest.mark.parametrize("name", OWN)
def test_help_says_what_the_docstring_says(name):
    kind, words = documented()[name]
    assert OURS[name].metadata["help"] == words
    if OURS[name].default is None:
        assert kind.endswith("*optional*")
    else:
        default = f"defaults to `{OURS[name].default!r}`".replace("'", '"').replace("3e-06", "3e-6")
        assert kind.endswith(f"*optional*, {default}")


def test_the_docstring_names_no_parameter_that_is_not_there():
    assert set(documented()) <= set(OURS)


@pytest.mark.parametrize("name, default", FORMER.items(), ids=FORMER)
def test_the_former_fields_are_there_with_their_defaults(name, default):
    assert OURS[name].default == default


def test_a_rollout_in_grpo_s_words(tmp_path):
    """Four micro-batches of two make a rollout; two mini-batches take two of them each, three times over."""
    args = ppo_config(tmp_path, gradient_accumulation_steps=4, num_mini_batches=2, num_ppo_epochs=3)
    assert (args.steps_per_generation, args.gradient_accumulation_steps, args.num_iterations) == (4, 2, 3)
    assert args.generation_batch_size == 8
    assert args.steps_per_rollout == 6
    assert (args.num_generations, args.num_generations_eval, args.beta) == (1, 1, 0.0)


def test_the_length_has_two_names(tmp_path):
    assert ppo_config(tmp_path).max_completion_length == 6
    assert ppo_config(tmp_path, max_completion_length=9).response_length == 9


def test_a_stop_token_id_takes_the_place_of_eos(tmp_path):
    assert ppo_config(tmp_path).stop_token == "eos"
    assert ppo_config(tmp_path, stop_token_id=7).stop_token is None


def test_precision_follows_the_machine(tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "bf16"}
    assert PPOConfig(str(tmp_path), **settings).bf16 is False


NAMES = {
    "kl_estimator": KL_ESTIMATORS,
    "score_position": SCORE_POSITIONS,
    "loss_normalization": LOSS_NORMALIZATIONS,
    "value_model_init": VALUE_MODEL_INITS,
}


@pytest.mark.parametrize("name, names", NAMES.items(), ids=NAMES)
def test_names_are_those_of_the_dict_that_uses_them(tmp_path, name, names):
    for value in names:
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
        ("num_mini_batches", 3, "does not divide `gradient_accumulation_steps`=2"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, name, value, match):
    with pytest.raises(ValueError, match=rf"`{name}`.*{match}"):
        ppo_config(tmp_path, **{name: value})


@pytest.mark.parametrize("name", [*REPLACED, *UNUSED])
def test_fields_of_grpo_without_a_meaning_are_refused_and_their_successor_named(tmp_path, name):
    values = {"loss_type": "grpo", "importance_sampling_level": "sequence", "scale_rewards": "none"}
    values |= {"multi_objective_aggregation": "normalize_then_sum"}
    default = GRPO[name].default
    value = values.get(name, True if default is False else 7)
    with pytest.raises(ValueError, match=rf"`{name}`=.* has no meaning in PPO. (Set .* instead|Leave it)"):
        ppo_config(tmp_path, **{name: value})


def test_a_rollout_of_one_completion_is_refused(tmp_path):
    with pytest.raises(ValueError, match="advantages of a rollout with one completion cannot be whitened"):
        ppo_config(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1)


def test_a_horizon_that_one_rollout_crosses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`kl_horizon`"):
        ppo_config(tmp_path, adaptive_kl=True, kl_horizon=1, gradient_accumulation_steps=4)


def test_the_command_line_takes_every_field(tmp_path):
    words = ["--output_dir", str(tmp_path), "--kl_estimator", "clamped", "--use_cpu", "true", "--stop_token_id", "5"]
    (args,) = TrlParser((PPOConfig,)).parse_args_and_config(words)
    assert (args.kl_estimator, args.stop_token_id) == ("clamped", 5)


@pytest.mark.parametrize("settings", [{"stop_token": None}, {"stop_token_id": 5}])
def test_stop_tokens_of_vllm_are_its_own(tmp_path, settings):
    with pytest.raises(ValueError, match="pass other stop tokens to vLLM in `generation_kwargs`"):
        ppo_config(tmp_path, use_vllm=True, **settings)
