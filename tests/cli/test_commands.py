"""Runs each command on tiny models and JSON Lines files."""

import json

import pytest

from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.cli import main
from trl_rlp.storage.loading import load_rows


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    folder = tmp_path_factory.mktemp("models")
    return {
        "policy": save(tiny_causal_lm(tokenizer), tokenizer, folder / "policy"),
        "reward": save(tiny_reward_model(tokenizer), tokenizer, folder / "reward"),
        "nli": save(tiny_nli(tokenizer), tokenizer, folder / "nli"),
    }


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def samples(tmp_path):
    rows = [
        {"prompt": f"{i}?", "completions": ["Yes", "yes.", "yes", "no", ""], "finished": [True] * 5} for i in range(4)
    ]
    return write_rows(tmp_path / "samples.jsonl", rows)


@pytest.fixture
def preferences(tmp_path):
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no!"} for i in range(8)]
    return write_rows(tmp_path / "preferences.jsonl", rows)


TRAINING = "--use_cpu true --max_steps 1 --per_device_train_batch_size 2 --report_to none".split()


def test_sample_writes_json_lines_from_another_column(tmp_path, models, capsys):
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"instruction": "a"}, {"instruction": "b"}])
    words = ["sample", "--model", models["policy"], "--prompts", prompts, "--prompt_column", "instruction"]
    words += ["--num_generations", "3", "--max_new_tokens", "4", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    assert "6 completions" in capsys.readouterr().out
    rows = load_rows(str(tmp_path / "out" / "samples.jsonl"))
    assert rows["prompt"] == ["a", "b"] and [len(row) for row in rows["completions"]] == [3, 3]


def test_sample_without_a_model_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    assert main(["sample", "--model", "no-such-model", "--prompts", prompts, "--output_dir", str(tmp_path)]) == 2
    assert "No model could be loaded from 'no-such-model'" in capsys.readouterr().err


def test_reward_checks_the_samples_before_it_loads_a_model(tmp_path, models, preferences, capsys):
    words = [
        "reward",
        "--model_name_or_path",
        models["policy"],
        "--preference_dataset",
        preferences,
        "--method",
        "spg",
    ]
    assert main([*words, "--output_dir", str(tmp_path / "out"), *TRAINING]) == 2
    assert "`policy_samples` and `synthetic_dataset` are None" in capsys.readouterr().err


def test_sample_without_a_prompt_column_is_an_error(tmp_path, models, capsys):
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"text": "a"}])
    words = ["sample", "--model", models["policy"], "--prompts", prompts, "--output_dir", str(tmp_path / "out")]
    assert main(words) == 2
    assert "lacks the columns ['prompt']" in capsys.readouterr().err


def test_prefer_writes_preferences_and_counts(tmp_path, models, samples, capsys):
    words = ["prefer", "--samples", samples, "--reward_model", models["reward"], "--equivalence", "exact"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert "4 preferences of 4 prompts" in capsys.readouterr().out
    rows = load_rows(str(tmp_path / "out" / "preferences.jsonl"))
    assert all(row["chosen"].lower().startswith("yes") and row["rejected"] in {"no", ""} for row in rows)
    assert isinstance(json.loads((tmp_path / "out" / "counts.json").read_text()), dict)


def test_prefer_with_an_nli_model_and_with_a_judge(tmp_path, models, samples):
    words = ["prefer", "--samples", samples, "--output_dir", str(tmp_path / "out"), "--threshold", "0.2"]
    nli = ["--reward_model", models["reward"], "--equivalence_model", models["nli"], "--generator", "select_all"]
    assert main([*words, *nli]) == 0
    judged = [*words, "--generator", "rlaif", "--judge_model", models["policy"]]
    assert main(judged) == 2  # the folder has the preferences of another generator
    words[4] = str(tmp_path / "judged")
    judged = [*words, "--generator", "rlaif", "--judge_model", models["policy"], "--max_length", "200"]
    assert main(judged) == 0 and main(judged) == 0


def test_prefer_without_an_accepted_prompt_is_one_line(tmp_path, models, capsys):
    rows = [{"prompt": "a", "completions": ["x", "y", "z"], "finished": [True] * 3}]
    words = ["prefer", "--samples", write_rows(tmp_path / "s.jsonl", rows), "--reward_model", models["reward"]]
    assert main([*words, "--equivalence", "exact", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("trl-rlp prefer: ") and "below_threshold" in error
    # The folder is still free, so another generator can use it.
    more = ["--equivalence", "exact", "--output_dir", str(tmp_path / "out"), "--generator", "reward"]
    assert main([*words, *more]) == 0


def test_reward_uses_the_options_of_the_model(tmp_path, models, preferences, capsys):
    words = ["reward", "--preference_dataset", preferences, "--output_dir", str(tmp_path / "out"), *TRAINING]
    assert main([*words, "--method", "none"]) == 2
    assert "`model_name_or_path` is not set" in capsys.readouterr().err
    words += ["--method", "none", "--model_name_or_path", models["policy"]]
    assert main([*words, "--model_init_kwargs", '{"dtype": "bfloat16"}']) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_broken_yaml_is_one_line(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("samples: [1\n")
    assert main(["prefer", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "`--config` is not YAML" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--use_peft", "true", "--lora_r", "2"]])
def test_reward_trains_a_plain_classifier(tmp_path, models, preferences, samples, extra):
    out = tmp_path / "out"
    words = ["reward", "--model_name_or_path", models["policy"], "--preference_dataset", preferences]
    words += ["--eval_preference_dataset", preferences, "--output_dir", str(out), "--method", "uml+spg"]
    words += ["--policy_samples", samples, "--labeling_reward_model", models["reward"], "--equivalence", "exact"]
    assert main([*words, "--view_prompts_per_device", "2", *TRAINING, *extra]) == 0
    assert (out / "model.safetensors").exists() and not (out / "adapter_config.json").exists()


def test_run_runs_algorithm_1_from_a_config_file(tmp_path, models, preferences, capsys):
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(4)])
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
    assert "refined reward model:" in output and "retrained_policy" in output
    assert main(words) == 0
    assert main([*words, "--seed", "7"]) == 2
    assert "other settings: `seed` was 42 and is 7" in capsys.readouterr().err
