import io
from pathlib import Path

import pytest
from rich.console import Console

from trl_rlp.cli import main
from trl_rlp.cli.arguments import parse
from trl_rlp.cli.run import Forecast, RunArguments, _build_estimate_table, _build_policy_table, print_result
from trl_rlp.memory_estimate import StageMemory
from trl_rlp.pipeline import RLPResult, Round
from trl_rlp.pipeline_config import RLPConfig


def test_a_metric_that_is_not_finite_is_printed_as_a_dash():
    """With a single prompt there is no standard error, which a stage stores as `None`."""
    console = Console(file=io.StringIO(), width=100)
    console.print(_build_policy_table({"sft": {"accuracy": 0.5, "accuracy_standard_error": None}}))
    text = console.file.getvalue()
    assert "0.500" in text and "-" in text.split("accuracy_standard_error")[1]


def test_given_samples_take_no_memory(monkeypatch):
    stages = {"policy": StageMemory(weights=1), "policy_samples": StageMemory(weights=2)}
    monkeypatch.setattr("trl_rlp.cli.run.estimate_memory", lambda config, shape: dict(stages))
    monkeypatch.setattr("trl_rlp.cli.run.read_run_shape", lambda *arguments: None)
    for has_samples, peak in ((False, 2), (True, 0)):
        forecast = Forecast(None, None, None, has_evaluation=False, has_samples=has_samples)
        assert [memory.peak for memory in forecast.stages.values()] == [1, peak]


def test_algorithm_1_runs_from_a_config_file(tmp_path, models, preferences, write_rows, capsys):
    prompts = write_rows("prompts.jsonl", [{"prompt": f"question {i}"} for i in range(4)])
    training = "{use_cpu: true, max_steps: 1, per_device_train_batch_size: 4, report_to: none, %s}"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"sft_model: {models['policy']}\npreference_dataset: {preferences}\nprompt_dataset: {prompts}\n"
        f"eval_prompt_dataset: {prompts}\nmethod: uml\nnum_generations: 3\nmax_new_tokens: 4\nheldout_share: 0.25\n"
        f"reward_args: {training % 'view_prompts_per_device: 2'}\n"
        f"policy_args: {training % 'num_generations: 2, max_completion_length: 4'}\n"
    )
    words = ["run", "--config", str(config), "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0
    output = capsys.readouterr().out
    estimate, _, result = output.partition("measured peak GiB")
    assert "GiB by formula" in estimate and "retrained_policy" in estimate and "evaluation" in result
    assert "refined reward model:" in output and "retrained_policy" in output
    assert main(words) == 0
    assert "GiB by formula" not in capsys.readouterr().out  # no stage starts
    assert main([*words, "--seed", "7"]) == 2
    assert "other settings: `seed` was 42 and is 7" in capsys.readouterr().err


def test_the_options_of_rounds_anchors_and_refinement(tmp_path):
    words = ["--output_dir", str(tmp_path), "--sft_model", "sft", "--anchor_weight", "3", "--refine_every", "8"]
    (config,) = parse("run", "", [*words, "--rounds", "2"], RLPConfig)
    assert (config.anchor_weight, config.refine_every, config.rounds) == (3.0, 8, 2)
    file = tmp_path / "config.yaml"
    file.write_text("sft_model: sft\nanchor_weight: 3\nrefine_every: '8'\nrounds: 2\n")
    (read,) = parse("run", "", ["--config", str(file), "--output_dir", str(tmp_path)], RLPConfig)
    assert read == config


def test_a_preset_is_below_the_file_and_the_file_below_the_command_line(tmp_path):
    """As without a preset, a mapping on the command line replaces that of the file. The preset's has other keys."""

    def read(*words):
        names = ("output_dir", "sft_model", "preference_dataset", "prompt_dataset")
        paths = [word for name in names for word in (f"--{name}", "x")]
        return parse("run", "", [*paths, *words], RunArguments, RLPConfig)[1]

    preset = RLPConfig.from_preset("anchored", "x", "x")
    assert read("--preset", "anchored") == preset and read() == RLPConfig("x", "x")
    file = tmp_path / "config.yaml"
    file.write_text("preset: anchored\nanchor_weight: 1\npolicy_args:\n  beta: 0.2\n  learning_rate: 1e-4\n")
    config = read("--config", str(file), "--refine_every", "2", "--reward_args", '{"seed": 7}')
    assert (config.anchor_weight, config.refine_every, config.sample_from) == (1.0, 2, "sft")
    assert config.policy_args == {**preset.policy_args, "beta": 0.2, "learning_rate": 1e-4}
    assert config.reward_args == {**preset.reward_args, "seed": 7}
    config = read("--config", str(file), "--anchor-weight", "0", '--policy_args={"beta": 0.3}')
    assert config.anchor_weight == 0.0 and config.policy_args == {**preset.policy_args, "beta": 0.3}
    file.write_text("preset: anchored\nnum_generations: 4\n")
    config = read("--config", str(file), "--preset", "paper")
    assert config.policy_args["max_steps"] == 80 and config.num_generations == 4
    with pytest.raises(ValueError, match="argument --preset: invalid choice: 'ours'"):
        read("--preset", "ours")
    file.write_text("preset: ours\n")
    with pytest.raises(ValueError, match=r"`preset` must be one of \['paper', 'anchored'\] or null, got 'ours'"):
        read("--config", str(file))


def test_the_result_has_the_gate_and_the_models_of_every_round(capsys):
    model = {"pairs": 3, "accuracy": 1.0, "calibration_error": 0.0, "margin": 1.0, "length_accuracy": 0.5}
    gate = {"metrics": {"comparisons": {"human": {"before": model, "after": model}}}}
    rounds = [Round(*(Path(f"{name}{number}") for name in ("p", "d", "r", "pi"))) for number in ("", "_2")]
    stages = {"gate": gate, "gate_2": gate}
    result = RLPResult(Path("my run") / "r", Path("pi"), *rounds[-1], stages=stages, rounds=rounds)
    print_result(result, {})
    output = capsys.readouterr().out
    assert [line.strip() for line in output.splitlines() if line.strip().startswith("gate")] == ["gate", "gate_2"]
    assert all(
        f"refined reward model: r{number}\nretrained policy:     pi{number}\n" in output for number in ("", "_2")
    )
    assert output.endswith("trl-rlp report 'my run'\n")


def test_names_of_several_rounds_are_not_cut():
    console = Console(file=io.StringIO(), width=80)
    names = ["synthetic_preferences_2", "retrained_policy_2"]
    console.print(_build_estimate_table(dict.fromkeys(names, StageMemory(weights=2.0**36, optimizer=2.0**36))))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert [line[0] for line in lines[1:]] == names and {len(line) for line in lines[1:]} == {7}

    console.file.truncate(0)
    metrics = {"kl": 0.0, "reward/refined_reward_model": 0.1, "reward/refined_reward_model_2": 0.2}
    console.print(
        _build_policy_table(dict.fromkeys(["sft", "policy", "retrained_policy", "retrained_policy_2"], metrics))
    )
    cells = [line.split("│")[1].strip() for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert "".join(cells) == "".join(metrics)


@pytest.mark.parametrize("command", ["run", "reward", "prefer", "anchors"])
def test_the_name_of_the_equivalence_is_checked_also_if_nothing_is_grouped(command, capsys):
    required = {
        "run": ("sft_model", "preference_dataset", "prompt_dataset"),
        "reward": ("preference_dataset",),
        "prefer": ("samples",),
        "anchors": (),
    }
    words = [word for name in ("output_dir", *required[command]) for word in (f"--{name}", "x")]
    assert main([command, *words, "--equivalence", "typo"]) == 2
    assert "`equivalence` must be one of ['embedding', 'exact', 'nli'], got 'typo'" in capsys.readouterr().err
