from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from peft import LoraConfig
from trl import GRPOConfig, ModelConfig, RLOOConfig

from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
from trl_rlp.rlp_ppo import RLPPPOConfig
from trl_rlp.trainer.field_values import convert_fields
from trl_rlp.trainer.reward import RLPRewardConfig


class Schedule(Enum):
    NO = "no"
    STEPS = "steps"


@dataclass
class Config:
    count: int = 1
    limit: int | None = None
    rate: float = 0.1
    quoted: "float | None" = None
    name: str = "a"
    flag: bool = False
    choice: Literal["low", "high"] = "low"
    start: bool | Literal["gaussian", "pissa_niter_[number of iters]"] = True
    schedule: Schedule | str = "no"
    names: list[str] | None = None
    numbers: list[float] = field(default_factory=list)
    either: list[str] | str | None = None
    pair: tuple[float, float] | None = None
    pairs: list[tuple[int, int]] | None = None
    options: dict[str, Any] | str | None = None
    weights: dict[str, float] | None = None
    anything: Any = None
    hidden: int = field(default=0, init=False)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("count", value, 2) for value in (2, "2", 2.0, "2.0", " 2 ", np.int64(2), "2e0")),
        ("count", "12345678901234567890", 12345678901234567890),
        ("limit", None, None),
        ("limit", "2", 2),
        *(("rate", value, 1e-4) for value in (1e-4, "1e-4", ".0001", np.float64(1e-4))),
        ("rate", 1, 1),
        ("quoted", "1e-4", 1e-4),
        ("name", "1e-4", "1e-4"),
        ("name", Path("a") / "b", "a/b"),
        *(("flag", value, True) for value in (True, "yes", "True", "t", "1", 1)),
        *(("flag", value, False) for value in (False, "no", "FALSE", "f", "0", 0)),
        ("choice", "high", "high"),
        ("start", "false", False),
        ("start", "gaussian", "gaussian"),
        ("start", "pissa_niter_16", "pissa_niter_16"),
        ("schedule", False, "no"),  # YAML's `no`
        ("schedule", "steps", "steps"),
        ("schedule", Schedule.STEPS, Schedule.STEPS),
        ("names", "a", ["a"]),
        ("names", ("a", "b"), ["a", "b"]),
        ("numbers", ["1e-4", 2], [1e-4, 2]),
        ("either", "a", "a"),
        ("either", ["a"], ["a"]),
        ("pair", [1, "2"], (1, 2.0)),
        ("pairs", [[0, "1"]], [(0, 1)]),
        ("options", '{"a": 1}', '{"a": 1}'),
        ("options", {"a": "1"}, {"a": "1"}),
        ("weights", {"a": "1e-4"}, {"a": 1e-4}),
        ("weights", '{"a": 1}', {"a": 1}),
        ("anything", [1], [1]),
    ],
)
def test_values_become_the_type_of_their_field(name, value, expected):
    converted = convert_fields({name: value}, Config)[name]
    assert converted == expected and type(converted) is type(expected) or isinstance(converted, np.float64)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("count", value, "an integer") for value in (2.5, "2.5", "two", [2], {"a": 2}, True, "inf", "")),
        ("count", None, "an integer, got None. Set a value, or remove the option to use its default"),
        ("limit", "x", "an integer or null, got 'x'"),
        *(("rate", value, "a number") for value in ("fast", True, [1.0], None)),
        *(("name", value, "text") for value in (["a"], {"a": 1}, None)),
        ("name", 2024, "text, got 2024. Write it in quotes"),
        ("name", False, "text, got False. Write it in quotes"),
        *(("flag", value, "true or false") for value in (2, "maybe", [True], None)),
        ("choice", "middle", r"one of \['low', 'high'\], got 'middle'"),
        ("start", "kaiming", "true or false or one of "),
        ("schedule", 3, r"one of \['no', 'steps'\] or text, got 3"),
        ("names", [1], r"a list of texts or null, got \[1\]"),
        ("numbers", ["a"], "a list of numbers"),
        ("pair", [1], "a list or null"),
        ("options", [1], "a mapping or text or null"),
        ("weights", {"a": "x"}, "a mapping or null"),
        ("weights", "x", "a mapping or null"),
    ],
)
def test_other_values_are_refused_with_the_full_name(name, value, expected):
    error = ValueError if isinstance(value, str) else TypeError
    with pytest.raises(error, match=f"`args.{name}` must be {expected}") as caught:
        convert_fields({name: value}, Config, "args.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["counts", "hidden"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=rf"There are \['{name}'\], which Config does not have"):
        convert_fields({name: 1}, Config)
    with pytest.raises(ValueError, match=rf"`args` has \['{name}'\]"):
        convert_fields({name: 1}, Config, "args.")


def test_trl_decides_about_booleans_in_its_fields_of_text():
    values = {"scale_rewards": False, "resume_from_checkpoint": True, "save_strategy": False}
    assert convert_fields(values, GRPOConfig) == {**values, "save_strategy": "no"}


@pytest.mark.parametrize(
    "config_class",
    [GRPOConfig, RLOOConfig, ModelConfig, LoraConfig, RLPConfig, RLPPPOConfig, RLPRewardConfig, QuickstartConfig],
)
def test_the_defaults_of_every_configuration_stay(config_class):
    """A default that would be refused or changed shows a type that the field does not really have."""
    defaults = {
        entry.name: entry.default_factory() if entry.default is MISSING else entry.default
        for entry in fields(config_class)
        if entry.init and not (entry.default is MISSING and entry.default_factory is MISSING)
    }
    assert convert_fields(defaults, config_class) == defaults


def test_values_are_those_that_the_command_line_lists():
    """The metadata `choices` belongs to the command line. Without it, `log_level: loud` is a KeyError in training."""
    assert convert_fields({"dtype": None, "bnb_4bit_quant_type": "fp4"}, ModelConfig)["bnb_4bit_quant_type"] == "fp4"
    with pytest.raises(ValueError, match=r"`dtype` must be one of \['auto', .*\] or null, got 'bf16'"):
        convert_fields({"dtype": "bf16"}, ModelConfig)
    with pytest.raises(ValueError, match=r"`log_level` must be one of \['detail', .*\], got 'loud'"):
        convert_fields({"log_level": "loud"}, GRPOConfig)
