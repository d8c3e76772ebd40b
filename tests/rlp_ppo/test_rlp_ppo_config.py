import re
from dataclasses import fields

import pytest
from trl import TrlParser

from tests.ppo_runs import ppo_config
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.reward.methods import METHODS


PPO = {field.name for field in fields(PPOConfig)}
ADDED = {field.name: field for field in fields(RLPPPOConfig) if field.name not in PPO}


def test_it_adds_fields_of_rlp_and_changes_none_of_ppo():
    assert all(name.startswith("rlp_") for name in ADDED) and not any(name.startswith("rlp_") for name in PPO)
    defaults = {field.name: field.default for field in fields(PPOConfig)}
    assert all(field.default == defaults[field.name] for field in fields(RLPPPOConfig) if field.name in PPO)


@pytest.mark.parametrize("name", ADDED)
def test_help_and_docstring_agree(name):
    pattern = rf"^        {name} \(.+\):\n((?:            .*\n)+)"
    (words,) = re.findall(pattern, RLPPPOConfig.__doc__, flags=re.M)
    assert ADDED[name].metadata["help"] == " ".join(words.split())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_accepted(tmp_path, method):
    assert ppo_config(tmp_path, RLPPPOConfig, rlp_method=method).rlp_method == method


@pytest.mark.parametrize(
    "name, value, match",
    [
        ("rlp_method", "sgp", r"must be one of \['none', 'uml', 'spg', 'uml\+spg'\], got 'sgp'"),
        ("rlp_num_generations", 1, "must be at least 2, because RLP compares completions, got 1"),
        ("rlp_temperature", 0.0, "must be above 0, got 0.0"),
        ("rlp_heldout_share", 1.0, r"must be between 0 and 1 \(both excluded\), got 1.0"),
        ("rlp_anchor_weight", -1.0, "must be at least 0, got -1.0"),
        ("rlp_refine_every", 0, "must be at least 1, got 0"),
        ("rlp_rounds", 0, "must be at least 1, got 0"),
        ("rlp_reward_args", "{lr: 1", "is not JSON"),
        ("rlp_reward_args", {"lr": 1}, r"has \['lr'\], which RLPRewardConfig does not have"),
        ("rlp_reward_args", {"method": "uml"}, r"may not set \['method'\]. Set `rlp_method`"),
    ],
)
def test_wrong_values_are_named(tmp_path, name, value, match):
    with pytest.raises(ValueError, match=f"`{name}` {match}"):
        ppo_config(tmp_path, RLPPPOConfig, **{name: value})


def test_types_are_converted_or_refused(tmp_path):
    """2.5 rounds would fail after the first policy has been trained."""
    loop = {"rlp_anchor_weight": "3", "rlp_refine_every": "8", "rlp_rounds": 2.0}
    read = ppo_config(tmp_path, RLPPPOConfig, rlp_method="spg", **loop)
    assert [vars(read)[name] for name in loop] == [3.0, 8, 2] and isinstance(read.rlp_rounds, int)
    for name in ("rlp_refine_every", "rlp_rounds", "rlp_num_generations"):
        for value in (2.5, True):
            with pytest.raises(TypeError, match=f"`{name}` must be an integer.*, got {value}"):
                ppo_config(tmp_path, RLPPPOConfig, rlp_method="spg", **{name: value})


def test_presets_create_the_class_that_is_called(tmp_path):
    args = RLPPPOConfig.from_preset("alpacafarm", str(tmp_path), rlp_method="spg", use_cpu=True, report_to="none")
    assert isinstance(args, RLPPPOConfig) and (args.rlp_method, args.kl_coef) == ("spg", 0.0067)


def test_the_command_line_accepts_every_field(tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--rlp_method", "uml", "--lam", "0.9"]
    (args,) = TrlParser((RLPPPOConfig,)).parse_args_and_config(words)
    assert (args.rlp_method, args.lam) == ("uml", 0.9)


@pytest.mark.parametrize("change", [{"rlp_anchor_weight": 3.0}, {"rlp_refine_every": 8}, {"rlp_rounds": 2}])
def test_plain_ppo_has_no_rounds_and_nothing_in_the_loop(tmp_path, change):
    with pytest.raises(ValueError, match='`rlp_rounds` are not used with `rlp_method`="none". Set `rlp_method` to'):
        ppo_config(tmp_path, RLPPPOConfig, **change)
    assert ppo_config(tmp_path, RLPPPOConfig, rlp_method="spg", **change).rlp_method == "spg"
