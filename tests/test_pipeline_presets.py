"""The presets of Algorithm 1. Their values are repeated here, and those of the paper are also in paper.yaml."""

import copy
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig

from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.pipeline_presets import PRESETS, apply_preset


PAPER = Path(__file__).parents[1] / "examples/configs/paper.yaml"
PAGE = Path(__file__).parents[1] / "docs/pipeline.md"
MACHINE = {"use_cpu": True, "bf16": False}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_configuration(name):
    before = copy.deepcopy(PRESETS[name])
    config = RLPConfig.from_preset(name, "run", "sft", policy_args=MACHINE, reward_args=MACHINE)
    assert (config.output_dir, config.sft_model) == ("run", "sft")
    assert {field: getattr(config, field) for field in PRESETS[name] if "args" not in field} == {
        field: value for field, value in before.items() if "args" not in field
    }
    assert PRESETS[name] == before


def test_the_preset_of_the_paper_has_the_values_of_the_example_configuration():
    settings = yaml.safe_load(PAPER.read_text())
    fields = {name: value for name, value in settings.items() if not name.startswith("equivalence")}
    for name in ("reward_args", "policy_args"):
        del fields[name]["bf16"]  # a question of the machine, and TRL's default
    assert PRESETS["paper"] == fields
    config = RLPConfig.from_preset("paper", "run", "sft")
    assert (config.sample_from, config.anchor_weight, config.refine_every, config.rounds) == ("policy", 0.0, None, 1)


def test_the_preset_of_ours_trains_one_policy_with_anchors_and_refinement_in_the_loop():
    config = RLPConfig.from_preset("anchored", "run", "sft")
    assert (config.sample_from, config.anchor_weight, config.refine_every) == ("sft", 3.0, 8)
    assert (config.method, config.num_generations, config.temperature) == ("spg", 10, 1.0)
    assert config.standardize_rewards and config.reward_config().confidence_threshold == 0.5
    policy = config.policy_config()
    assert isinstance(policy, GRPOConfig)
    assert (policy.beta, policy.num_generations, policy.scale_rewards) == (0.1, 8, "none")


def test_the_page_has_the_values_of_the_preset_of_ours():
    preset, page = PRESETS["anchored"], PAGE.read_text()
    for name in ("anchor_weight", "refine_every"):
        assert f"| `{name}` | {preset[name]} |" in page
    assert f"| `policy_args` | `beta` {preset['policy_args']['beta']}, ".replace(" 0.", " .") in page
    assert all(f"`{name}`" in page for name in [*preset["policy_args"], "sample_from", "standardize_rewards"])


@pytest.mark.parametrize("policy_args", [{"beta": 0.2, "learning_rate": 1e-4}, '{"beta": 0.2}', {}, None])
def test_an_override_of_one_key_keeps_the_others(policy_args):
    config = RLPConfig.from_preset("anchored", "run", "sft", refine_every=2, policy_args=policy_args)
    assert (config.refine_every, config.anchor_weight) == (2, 3.0)
    assert config.policy_args["beta"] == (0.2 if policy_args else 0.1)
    assert config.policy_args["scale_rewards"] == "none"
    assert ("learning_rate" in config.policy_args) == (isinstance(policy_args, dict) and bool(policy_args))
    assert config.reward_args == PRESETS["anchored"]["reward_args"]


def test_a_field_that_no_preset_has_is_kept():
    values = apply_preset("anchored", {"policy_peft": {"r": 4}, "anchor_weight": 0.0})
    assert values["policy_peft"] == {"r": 4} and values["anchor_weight"] == 0.0


@pytest.mark.parametrize(
    ("name", "overrides", "match"),
    [
        ("ours", {}, r"`name` must be one of \['paper', 'anchored'\], got 'ours'"),
        ("paper", {"policy_trainer": "grpo"}, "`policy_trainer` is 'grpo', but the `policy_args` of the preset 'pap"),
        ("paper", {"policy_args": "{kl"}, "`policy_args` is not JSON"),
        ("anchored", {"policy_trainer": "ppo"}, "are for 'grpo'. Leave it out"),
        ("paper", {"policy_args": {"kl": 1}}, r"`policy_args` has \['kl'\], which PPOConfig does not have"),
    ],
)
def test_names_and_values_that_do_not_fit_are_errors(name, overrides, match):
    with pytest.raises(ValueError, match=match):
        RLPConfig.from_preset(name, "run", "sft", **overrides)
