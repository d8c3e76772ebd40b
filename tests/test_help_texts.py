"""The help text of each field of a configuration equals the field's text in the docstring."""

import importlib
import re
from dataclasses import MISSING, Field, fields, is_dataclass

import pytest

from trl_rlp.cli.main import COMMANDS
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.quickstart.quickstart_config import QuickstartConfig


def find_cli_dataclasses() -> list[type]:
    modules = [importlib.import_module(f"trl_rlp.cli.{name}") for name in ("arguments", *COMMANDS)]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return sorted(
        {value for value in values if is_dataclass(value) and value.__module__.startswith("trl_rlp.cli.")},
        key=lambda value: value.__name__,
    )


CONFIGURATIONS = [RLPConfig, QuickstartConfig, *find_cli_dataclasses()]
FIELDS = [
    pytest.param(configuration, field, id=f"{configuration.__name__}.{field.name}")
    for configuration in CONFIGURATIONS
    for field in fields(configuration)
]


def read_docstring(configuration: type) -> dict[str, tuple[str, str]]:
    """Reads the type line and the text of each parameter from the docstring, by name."""
    pattern = r"^        (\w+) \((.+)\):\n((?:            .*\n)+)"
    parameters = re.findall(pattern, configuration.__doc__, flags=re.M)
    return {name: (type_line, " ".join(text.split())) for name, type_line, text in parameters}


def test_the_dataclasses_of_the_command_line_are_found():
    names = {configuration.__name__ for configuration in CONFIGURATIONS}
    assert {"EquivalenceArguments", "EvaluateArguments", "PreferArguments", "RewardArguments"} <= names
    assert {"AnchorArguments", "RunArguments", "SampleArguments", "SamplingArguments"} <= names


@pytest.mark.parametrize(("configuration", "field"), FIELDS)
def test_help_and_docstring_agree(configuration: type, field: Field):
    type_line, text = read_docstring(configuration)[field.name]
    assert field.metadata["help"] == text
    if field.default is MISSING:
        assert "*optional*" not in type_line
    elif field.default is None:
        assert type_line.endswith("*optional*")
    else:
        default = f"defaults to `{field.default!r}`".replace("'", '"')
        assert type_line.endswith(f"*optional*, {default}")


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_docstring_names_only_fields(configuration):
    assert list(read_docstring(configuration)) == [field.name for field in fields(configuration)]
