from dataclasses import dataclass, field

import pytest

from trl_rlp.trainer.mappings import parse_mapping, parse_numbers


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
    optional: float | None = None
    quoted: "float" = 0.1
    quoted_optional: "float | None" = None
    name: str = "a"
    count: int = 1
    either: float | str = 0.1
    mapping: dict = field(default_factory=dict)


@pytest.mark.parametrize("name", ["rate", "optional", "quoted", "quoted_optional"])
@pytest.mark.parametrize("text, expected", [("1e-5", 1e-5), ("3", 3.0), ("-.5", -0.5), ("inf", float("inf"))])
def test_text_becomes_a_float_in_float_fields(name, text, expected):
    values = {name: text}
    converted = parse_numbers("args", values, Config)[name]
    assert converted == expected and isinstance(converted, float)
    assert values == {name: text}


@pytest.mark.parametrize("values", [{"name": "1e-5"}, {"count": "3"}, {"either": "1e-5"}, {"mapping": {"rate": "1"}}])
def test_other_fields_are_not_converted(values):
    assert parse_numbers("args", values, Config) == values


def test_values_that_are_not_text_are_kept():
    values = {"rate": 1, "optional": None, "quoted": 0.5}
    assert parse_numbers("args", values, Config) == values


def test_text_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="`policy_args` sets `optional`='fast', which must be a number") as caught:
        parse_numbers("policy_args", {"optional": "fast"}, Config)
    assert caught.value.__cause__ is None
