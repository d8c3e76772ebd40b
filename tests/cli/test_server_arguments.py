"""The options of a server, from the command line and from the environment."""

import pytest

from trl_rlp.cli.arguments import parse
from trl_rlp.cli.server_arguments import ServerArguments


def build(*words):
    return parse("sample", "", words, ServerArguments)[0]


def test_defaults_are_those_of_the_python_functions():
    assert build().connection() == {
        "api_key": None,
        "extra_body": None,
        "timeout": 600.0,
        "max_retries": 5,
        "max_concurrency": 16,
    }


def test_extra_body_is_json_on_the_command_line_and_a_mapping_in_yaml(tmp_path):
    expected = {"top_k": -1, "seed": None, "nested": {"a": [1]}}
    (tmp_path / "config.yaml").write_text("extra_body:\n  top_k: -1\n  seed: null\n  nested: {a: [1]}\n")
    assert build("--config", str(tmp_path / "config.yaml")).connection()["extra_body"] == expected
    text = '{"top_k": -1, "seed": null, "nested": {"a": [1]}}'
    assert build("--extra_body", text).connection()["extra_body"] == expected
    with pytest.raises(ValueError, match="`extra_body` is not JSON"):
        build("--extra_body", "top_k=5").connection()


def test_the_key_is_passed_or_read_from_a_variable_that_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert build().connection()["api_key"] is None
    assert build("--api_key", "sk-1").connection()["api_key"] == "sk-1"
    assert build("--api_key_variable", "OPENAI_API_KEY").connection()["api_key"] == "sk-other"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(
        ValueError, match="`api_key_variable` names the environment variable 'OPENAI_API_KEY', which is"
    ):
        build("--api_key_variable", "OPENAI_API_KEY").connection()
    with pytest.raises(ValueError, match="`api_key` and `api_key_variable` are both passed"):
        build("--api_key", "a", "--api_key_variable", "B").connection()


def test_the_key_is_not_in_the_representation():
    assert "sk-secret" not in repr(build("--api_key", "sk-secret"))
