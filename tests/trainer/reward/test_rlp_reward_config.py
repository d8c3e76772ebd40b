import math
import re
from dataclasses import fields

import pytest
from trl import RewardConfig, TrlParser

from trl_rlp.data.preferences.pairing import CHOSEN
from trl_rlp.losses.mutual_information import LOWER_BOUNDS
from trl_rlp.losses.representation import LOSSES, RECIPES
from trl_rlp.trainer.reward.methods import METHODS, VIEWS_FROM
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


NAMES = {
    "method": METHODS,
    "representation_loss": LOSSES,
    "mi_estimator": LOWER_BOUNDS,
    "representation_recipe": RECIPES,
    "views_from": VIEWS_FROM,
    "chosen": CHOSEN,
}
OWN = sorted({field.name for field in fields(RLPRewardConfig)} - {field.name for field in fields(RewardConfig)})


def parse_docstring() -> dict[str, tuple[str, str]]:
    """Reads the type line and the text of each parameter from the docstring, by name."""
    pattern = r"^        (\w+) \((.+)\):\n((?:            .*\n)+)"
    parameters = re.findall(pattern, RLPRewardConfig.__doc__, flags=re.M)
    return {name: (type_line, " ".join(text.split())) for name, type_line, text in parameters}


@pytest.mark.parametrize("name", OWN)
def test_the_help_equals_the_docstring(name):
    field = next(field for field in fields(RLPRewardConfig) if field.name == name)
    type_line, text = parse_docstring()[name]
    assert field.metadata["help"] == text
    if field.default is None:
        assert type_line.endswith("*optional*")
    else:
        default = f"defaults to `{field.default!r}`".replace("'", '"').replace("0.0001", "1e-4")
        assert type_line.endswith(f"*optional*, {default}")


def test_the_docstring_has_exactly_the_new_parameters():
    assert sorted(parse_docstring()) == OWN


def test_the_defaults_are_those_of_the_paper(tmp_path):
    config = RLPRewardConfig(str(tmp_path))
    assert (config.representation_coef, config.confidence_threshold, config.chosen) == (0.5, 0.5, "reward")
    assert (config.representation_loss, config.mi_estimator, config.representation_recipe) == ("mib", "jsd", "paper")
    assert (config.synthetic_share, config.redraw_rejected, config.views_from) == (None, False, "any")
    assert config.method == "none"
    assert config.remove_unused_columns is False


def test_unused_fields_are_named_once(tmp_path, caplog):
    RLPRewardConfig(str(tmp_path), method="uml+spg", redraw_rejected=True, kl_weight=0.0)
    assert caplog.text == ""
    for _ in range(2):
        RLPRewardConfig(str(tmp_path), method="uml", redraw_rejected=True, kl_weight=0.0)
    assert caplog.text.count("['redraw_rejected'] are not used with `method`='uml' and have no effect.") == 1
    RLPRewardConfig(str(tmp_path), synthetic_share=0.5, kl_weight=0.0)
    assert "['kl_weight', 'synthetic_share'] are not used with `method`='none'" in caplog.text


@pytest.mark.parametrize("name, names", NAMES.items(), ids=NAMES)
def test_allowed_names_are_the_keys_of_the_dict_that_uses_them(tmp_path, name, names):
    for value in names:
        assert vars(RLPRewardConfig(str(tmp_path), **{name: value}))[name] == value
    with pytest.raises(ValueError, match=rf"`{name}` must be one of {re.escape(str(sorted(names)))}, got 'other'"):
        RLPRewardConfig(str(tmp_path), **{name: "other"})


@pytest.mark.parametrize(
    "name, valid, invalid",
    [
        ("representation_coef", [0.0, 2.0], [-0.1, math.inf]),
        ("kl_weight", [None, 0.0], [-1.0, math.inf]),
        ("kl_ramp_steps", [0, 10], [-1]),
        ("view_prompts_per_device", [2, 64], [1, 0]),
        ("heads_learning_rate", [1e-6], [0.0, -1e-4, math.inf]),
        ("heads_weight_decay", [0.0, 0.1], [-0.1, math.inf]),
        ("confidence_threshold", [0.0, 1.0], [-0.01, 1.01]),
        ("synthetic_share", [None, 0.5], [0.0, 1.0, 1.5]),
    ],
)
def test_ranges(tmp_path, name, valid, invalid):
    for value in valid:
        assert vars(RLPRewardConfig(str(tmp_path), **{name: value}))[name] == value
    for value in invalid:
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
            RLPRewardConfig(str(tmp_path), **{name: value})


def test_columns_must_not_be_removed(tmp_path):
    assert RLPRewardConfig(str(tmp_path), remove_unused_columns=True).remove_unused_columns
    with pytest.raises(ValueError, match="`remove_unused_columns` must be False with `method`='uml'"):
        RLPRewardConfig(str(tmp_path), method="uml", remove_unused_columns=True)


def test_fields_can_be_set_on_a_command_line(tmp_path):
    words = ["--output_dir", str(tmp_path), "--method", "uml+spg", "--kl_weight", "0.1", "--joint_forward", "False"]
    (config,) = TrlParser(RLPRewardConfig).parse_args_and_config(words)
    assert (config.method, config.kl_weight, config.joint_forward, config.synthetic_share) == (
        "uml+spg",
        0.1,
        False,
        None,
    )
    assert config.bf16 is False or config.bf16 is True


def test_the_terms_of_the_methods():
    assert METHODS == {"none": (False, False), "uml": (True, False), "spg": (False, True), "uml+spg": (True, True)}
