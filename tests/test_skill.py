"""The skill for coding assistants: its header is valid, and each of its commands and snippets runs."""

import functools
import re

import pytest
import trl
import yaml

import trl_rlp
from tests.examples.test_notebooks import find_private_imports
from tests.skill_runs import SKILL, SMALL, find_blocks, list_commands, shrink_commands, write_inputs
from trl_rlp.cli import main
from trl_rlp.cli.main import COMMANDS


def read_header() -> dict:
    return yaml.safe_load(SKILL.read_text(encoding="utf-8").split("---\n")[1])


def test_the_header_follows_the_specification_of_skills():
    """The name is that of the folder. Name and description have at most 64 and 1,024 characters."""
    header = read_header()
    assert header["name"] == SKILL.parent.name and re.fullmatch(r"[a-z0-9-]{1,64}", header["name"])
    assert 0 < len(header["description"]) <= 1024 and set(header) <= {"name", "description", "license", "metadata"}


def test_the_skill_is_found_where_scanners_of_installed_packages_look():
    assert SKILL.parts[-5:] == ("trl_rlp", ".agents", "skills", "trl-rlp", "SKILL.md") and SKILL.is_file()


def test_the_skill_shows_every_command():
    assert [words[0] for words in list_commands()] == ["trl-rlp"] * len(COMMANDS)
    assert {words[1] for words in list_commands()} == set(SMALL) == set(COMMANDS)


@pytest.mark.parametrize("words", list_commands(), ids=lambda words: words[1])
def test_the_options_of_each_command_exist(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([words[1], "--help"])
    text = capsys.readouterr().out
    assert all(f"{word} " in text for word in words if word.startswith("--")), words


def test_snippets_import_only_public_names():
    assert [name for snippet in find_blocks("python") for name in find_private_imports(snippet)] == []


@pytest.mark.slow
def test_commands_and_snippets_run(tmp_path, monkeypatch):
    """The snippets read what the commands wrote. `make wheel` runs the same commands with the installed package."""
    monkeypatch.chdir(tmp_path)
    on_cpu = {"bf16": False, "use_cpu": True, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
    small = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4}
    monkeypatch.setattr(trl, "GRPOConfig", functools.partial(trl.GRPOConfig, **on_cpu, **small))
    monkeypatch.setattr(
        trl_rlp, "RLPRewardConfig", functools.partial(trl_rlp.RLPRewardConfig, view_prompts_per_device=2, **on_cpu)
    )
    write_inputs(tmp_path)
    for words in shrink_commands(tmp_path):
        if "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                main(words[1:])
        else:
            assert main(words[1:]) == 0, words
    for snippet in find_blocks("python"):
        exec(compile(snippet, "SKILL.md", "exec"), {})
