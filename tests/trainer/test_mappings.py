from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers.trainer_utils import IntervalStrategy

from trl_rlp.trainer.mappings import parse_fields, parse_mapping, require_no_evaluation


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, None),
        ({}, {}),
        ({"lr": 1}, {"lr": 1}),
        ("{}", {}),
        ("null", None),
        ('{"lr": 1e-5, "names": ["a"], "nested": {"x": null}}', {"lr": 1e-5, "names": ["a"], "nested": {"x": None}}),
    ],
)
def test_a_mapping_is_a_dict_or_json_text(value, expected):
    assert parse_mapping("args", value) == expected


@pytest.mark.parametrize("value", ["[1]", "1", '"text"', [("lr", 1)], 3, True])
def test_other_values_are_type_errors(value):
    with pytest.raises(TypeError, match="`reward_args` must be a mapping, got"):
        parse_mapping("reward_args", value)


@pytest.mark.parametrize("value", ["{lr: 1}", "lr=1", "", "{'lr': 1}"])
def test_text_that_is_not_json_is_an_error_with_an_example(value):
    match = r"`reward_args` is not JSON \(.*\). Pass a mapping such as '\{\"seed\": 1\}'"
    with pytest.raises(ValueError, match=match):
        parse_mapping("reward_args", value)


@dataclass
class Config:
    rate: float = 0.1
    folder: str = "a"


@pytest.mark.parametrize("value", [{"rate": "1e-5", "folder": "~/x"}, '{"rate": "1e-5", "folder": "~/x"}'])
def test_fields_get_their_types_and_expanded_paths(value):
    assert parse_fields("args", value, Config) == {"rate": 1e-5, "folder": str(Path.home() / "x")}
    assert parse_fields("args", None, Config) is None


def test_an_error_names_the_mapping_and_the_field():
    with pytest.raises(ValueError, match="`policy_args.rate` must be a number, got 'fast'"):
        parse_fields("policy_args", {"rate": "fast"}, Config)
    with pytest.raises(ValueError, match=r"`policy_args` has \['rats'\], which Config does not have. .* `rate`"):
        parse_fields("policy_args", {"rats": 1}, Config)


def test_evaluation_during_training_is_refused():
    require_no_evaluation("policy_args", {})
    require_no_evaluation("policy_args", {"eval_strategy": IntervalStrategy.NO})
    with pytest.raises(ValueError, match="`policy_args.eval_strategy` must be \"no\", got 'steps'. The stages train"):
        require_no_evaluation("policy_args", {"eval_strategy": "steps"})
