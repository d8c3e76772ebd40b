import json

import pytest

import trl_rlp
from tests.tiny_models import save, tiny_reward_model, tiny_tokenizer
from trl_rlp.cli import main
from trl_rlp.cli.main import COMMANDS


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS) and "--config" in text


def test_no_command_and_an_unknown_command_exit_with_2(capsys):
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert (
        "unknown command 'trian'. Choose one of sample, anchors, prefer, reward, run, evaluate, report, quickstart"
        in capsys.readouterr().err
    )


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trl-rlp {trl_rlp.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: trl-rlp {command}" in capsys.readouterr().out


def test_an_expected_error_is_one_line(capsys, monkeypatch):
    assert main(["sample", "--model", "m", "--prompts", "missing.jsonl", "--output_dir", "o"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "trl-rlp sample: No dataset at 'missing.jsonl'" in error
    monkeypatch.setenv("TRL_RLP_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["sample", "--model", "m", "--prompts", "missing.jsonl", "--output_dir", "o"])


def test_an_unknown_key_in_the_config_file_is_an_error(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("model: m\nprompts: p.jsonl\noutput_dir: o\nnum_generation: 3\n")
    assert main(["sample", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "has no option `num_generation`" in error and "`num_generations`?" in error


def test_an_unknown_option_is_one_line(capsys):
    assert main(["prefer", "--sampels", "s.jsonl", "--output_dir", "o"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`trl-rlp prefer` has no option `--sampels`. Did you mean `--samples`?" in error


def test_flags_override_the_config_file(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("model: m\nprompts: from_file.jsonl\noutput_dir: o\n")
    assert main(["sample", "--config", str(config), "--prompts", "from_flag.jsonl"]) == 2
    assert "from_flag.jsonl" in capsys.readouterr().err


def test_a_chat_template_that_refuses_messages_is_one_line(tmp_path, capsys):
    """TRL's trainers apply the template too, so its own error is expected as well."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    model = save(tiny_reward_model(tokenizer), tokenizer, tmp_path / "model")
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    (tmp_path / "pairs.json").write_text(json.dumps([{"prompt": [{"role": "system", "content": "a"}], **sides}]))
    words = ["evaluate", "--reward_model", model, "--preferences", str(tmp_path / "pairs.json")]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "the roles ['system', 'assistant']: System role not supported." in capsys.readouterr().err.splitlines()[-1]
    words = ["reward", "--method", "none", "--model_name_or_path", model, "--use_cpu", "true", "--report_to", "none"]
    words += ["--preference_dataset", str(tmp_path / "pairs.json"), "--output_dir", str(tmp_path / "reward")]
    assert main(words) == 2
    assert "trl-rlp reward: System role not supported" in capsys.readouterr().err.splitlines()[-1]
