import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trl_rlp.storage.paths import expand_fields, expand_path, expand_paths


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("NAME", "value")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~/runs/x", "/home/user/runs/x"),
        (Path("~/runs"), "/home/user/runs"),
        ("~", "/home/user"),
        ("runs/~/x", "runs/~/x"),
        ("org/model", "org/model"),
        ("$NAME/x", "$NAME/x"),  # as in TrainingArguments
        (Path("runs"), "runs"),
    ],
)
def test_only_a_leading_tilde_is_expanded(path, expected):
    assert expand_path(path) == expected


def test_a_name_that_is_expanded_twice_stays():
    assert expand_path(expand_path("~/runs")) == "/home/user/runs"


@pytest.mark.parametrize("value", [None, 3, False, ["a"]])
def test_what_is_no_path_is_an_error(value):
    with pytest.raises(TypeError, match="must be text or a `Path`, got"):
        expand_path(value)


def test_paths_inside_mappings_and_lists_are_expanded():
    value = {"kwargs": {"cache_dir": "~/hub", "folders": [Path("~/a"), "b"]}, "rate": 0.1, "token": "~", "none": None}
    assert expand_paths(value) == {
        "kwargs": {"cache_dir": "/home/user/hub", "folders": ["/home/user/a", "b"]},
        "rate": 0.1,
        "token": "~",
        "none": None,
    }
    assert value["kwargs"]["cache_dir"] == "~/hub"


def test_the_fields_of_a_configuration_are_expanded():
    @dataclass
    class Config:
        folder: str | os.PathLike
        options: dict[str, Any] = field(default_factory=dict)
        rate: float = 0.1
        derived: str = field(init=False)

    config = Config(Path("~/x"), {"cache_dir": "~/hub"})
    expand_fields(config)
    assert vars(config) == {"folder": "/home/user/x", "options": {"cache_dir": "/home/user/hub"}, "rate": 0.1}
