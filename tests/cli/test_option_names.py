"""The names of arguments in error messages are those of the command's options."""

import importlib
import re
from dataclasses import fields, is_dataclass

import pytest

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.cli import main
from trl_rlp.cli.main import COMMANDS
from trl_rlp.cli.option_names import OPTION_NAMES, name_options


def find_options(command):
    """The fields of the dataclasses that the command's module uses."""
    values = vars(importlib.import_module(f"trl_rlp.cli.{command}")).values()
    return {
        field.name for value in values if isinstance(value, type) and is_dataclass(value) for field in fields(value)
    }


@pytest.mark.parametrize("command", OPTION_NAMES)
def test_an_argument_that_is_no_option_becomes_one_that_exists(command):
    assert command in COMMANDS
    options = find_options(command)
    for argument, name in OPTION_NAMES[command].items():
        assert argument not in options
        assert set(re.findall("`(.*?)`", name)) <= options


def test_names_are_replaced_in_backticks_only():
    message = "`model` has no pad token. `processing_class` has none either, and the `rule` of a model is lost."
    assert name_options("prefer", message) == (
        "The model has no pad token. The model's tokenizer has none either, and the `equivalence_rule` of a model is "
        "lost."
    )
    assert name_options("quickstart", message) == message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"generator": "reward", "keep_candidates": "True"},
            "`keep_candidates` must be False with `generator`='reward'",
        ),
        ({"generator": "spg"}, "`reward_model` is None, but `generator`='spg'"),
        ({"generator": "rlaif"}, "`judge_model` is None, but `generator`='rlaif'"),
        ({"equivalence_rule": "loose"}, "`equivalence_rule` must be one of"),
        ({"equivalence_cache": "."}, "`equivalence_cache`='.' is a folder"),
        (
            {"equivalence": "embedding", "equivalence_model": "e", "embedding_threshold": "2"},
            "`embedding_threshold` is a cosine similarity in [-1, 1], got 2.0",
        ),
    ],
)
def test_messages_of_prefer_name_its_options(tmp_path, models, samples, options, expected, capsys):
    defaults = {"equivalence_model": models["nli"], "samples": samples, "output_dir": str(tmp_path / "out")}
    words = [word for name, value in {**defaults, **options}.items() for word in (f"--{name}", value)]
    assert main(["prefer", *words]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_a_tokenizer_without_a_chat_template_is_that_of_the_model(tmp_path, write_rows, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    folder = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "policy")
    prompts = write_rows("prompts.jsonl", [{"prompt": [{"role": "user", "content": "a?"}]}])
    assert main(["sample", "--model", folder, "--prompts", prompts, "--output_dir", str(tmp_path / "out")]) == 2
    assert "sample: The tokenizer of `model` has no chat template" in capsys.readouterr().err.splitlines()[-1]


def test_the_token_limit_of_sample_has_its_own_name(tmp_path, write_rows, capsys):
    prompts = write_rows("prompts.jsonl", [{"prompt": "a"}])
    words = ["sample", "--model", "m", "--prompts", prompts, "--output_dir", str(tmp_path), "--max_new_tokens", "0"]
    for server in ([], ["--base_url", "http://127.0.0.1:9/v1"]):
        assert main([*words, *server]) == 2
        assert "`max_new_tokens` must be at least 1" in capsys.readouterr().err


def test_messages_about_a_server_name_options_of_both_commands(tmp_path):
    """Every name in backticks in the client's messages is an option of `sample` and of `evaluate`."""
    module = importlib.import_module("trl_rlp.data.server_client")
    source = open(module.__file__).read()
    texts = re.findall(r'f?"((?:[^"\\]|\\.)*)"', re.sub(r'""".*?"""', "", source, flags=re.DOTALL))
    names = {name for text in texts for name in re.findall("`([a-z_]+)`", text)} - {"openai"}
    assert {"api_key", "base_url", "extra_body", "timeout"} <= names
    assert names <= find_options("sample") & find_options("evaluate")
