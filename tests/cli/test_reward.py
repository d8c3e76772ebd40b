import json

import pytest
from transformers import AutoModelForSequenceClassification

from trl_rlp.cli import main
from trl_rlp.cli.arguments import EquivalenceArguments
from trl_rlp.cli.reward import RewardArguments
from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.report.training_log import read_training_log
from trl_rlp.storage.artifacts import load_reward_model
from trl_rlp.storage.loading import load_rows
from trl_rlp.trainer.reward.initial_model import init_reward_model
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


TRAINING = "--use_cpu true --max_steps 1 --per_device_train_batch_size 2 --report_to none".split()


@pytest.mark.parametrize("extra", [[], ["--use_peft", "true", "--lora_r", "2"]])
def test_the_saved_model_is_a_plain_classifier(tmp_path, models, preferences, samples, extra, capsys):
    out = tmp_path / "out"
    words = ["reward", "--model_name_or_path", models["policy"], "--preference_dataset", preferences]
    words += ["--eval_preference_dataset", preferences, "--output_dir", str(out), "--method", "uml+spg"]
    words += ["--policy_samples", samples, "--labeling_reward_model", models["reward"], "--equivalence", "exact"]
    assert main([*words, "--view_prompts_per_device", "2", *TRAINING, *extra]) == 0
    assert (out / "model.safetensors").exists() and not (out / "adapter_config.json").exists()
    printed = capsys.readouterr().out
    assert "eval_accuracy" in printed and f"reward model: {out}" in printed
    log = read_training_log(out)
    assert log.path == out / "trainer_state.json"
    assert log.curve("eval_accuracy") and log.last("train_runtime") is not None
    weights = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    initial = init_reward_model(models["policy"], seed=42)[0].state_dict()
    assert set(weights) == set(initial) and not weights["score.weight"].equal(initial["score.weight"])


def test_samples_are_checked_before_a_model_is_loaded(tmp_path, models, preferences, capsys):
    words = ["reward", "--model_name_or_path", models["policy"], "--preference_dataset", preferences]
    assert main([*words, "--method", "spg", "--output_dir", str(tmp_path / "out"), *TRAINING]) == 2
    assert "`policy_samples` and `synthetic_dataset` are None" in capsys.readouterr().err


def test_the_options_of_the_model_are_used(tmp_path, models, preferences, capsys):
    words = ["reward", "--preference_dataset", preferences, "--output_dir", str(tmp_path / "out"), *TRAINING]
    assert main([*words, "--method", "none"]) == 2
    assert "`model_name_or_path` is not set" in capsys.readouterr().err
    words += ["--method", "none", "--model_name_or_path", models["policy"], "--dtype", "float32"]
    assert main([*words, "--model_init_kwargs", '{"dtype": "bfloat16"}']) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_training_resumes_from_the_last_checkpoint(tmp_path, models, preferences, monkeypatch):
    words = ["reward", "--model_name_or_path", models["policy"], "--preference_dataset", preferences]
    words += ["--method", "none", "--output_dir", str(tmp_path), "--save_steps", "1", *TRAINING]
    assert main(words) == 0
    steps, compute_loss = [], RLPRewardTrainer.compute_loss
    monkeypatch.setattr(
        RLPRewardTrainer,
        "compute_loss",
        lambda self, *args, **kwargs: steps.append(self.state.global_step) or compute_loss(self, *args, **kwargs),
    )
    assert main([*words, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0
    assert steps == [1, 2]


NEEDS_GROUPS = {
    "none": ({"method": "none"}, {}, False),
    "views of any two completions": ({"method": "uml"}, {"policy_samples": True}, False),
    "views of one group": ({"method": "uml", "views_from": "group"}, {"policy_samples": True}, True),
    "pairs to make": ({"method": "spg"}, {"policy_samples": True, "labeling_reward_model": True}, True),
    "ready pairs": ({"method": "spg"}, {"synthetic_dataset": True}, False),
    "views and ready pairs": ({"method": "uml+spg"}, {"policy_samples": True, "synthetic_dataset": True}, False),
}


@pytest.mark.parametrize("settings, given, is_built", NEEDS_GROUPS.values(), ids=NEEDS_GROUPS)
def test_only_what_the_method_needs_is_loaded(tmp_path, models, samples, preferences, settings, given, is_built):
    """An equivalence may be a large model, so it is built only if samples have to be grouped."""
    paths = {"policy_samples": samples, "synthetic_dataset": preferences, "labeling_reward_model": models["reward"]}
    data = RewardArguments(preferences, **{name: paths[name] for name in given})
    config = RLPRewardConfig(str(tmp_path), use_cpu=True, report_to="none", **settings)
    arguments = data.load_refinement(EquivalenceArguments(equivalence="exact"), config)
    expected = {*given, *(["equivalence"] if is_built else [])}
    expected |= {"labeling_processing_class"} if "labeling_reward_model" in given else set()
    assert set(arguments) == expected
    for name in {"policy_samples", "synthetic_dataset"} & set(given):
        assert arguments[name].to_list() == load_rows(paths[name]).to_list()
    if is_built:
        assert isinstance(arguments["equivalence"], ExactMatch)
    if "labeling_reward_model" in given:
        weights = load_reward_model(models["reward"])[0].state_dict()
        assert all(weight.equal(weights[k]) for k, weight in arguments["labeling_reward_model"].state_dict().items())


def test_a_model_or_checkpoints_of_another_training_are_not_overwritten(tmp_path, models, preferences, capsys):
    out = tmp_path / "out"
    words = ["reward", "--model_name_or_path", models["policy"], "--preference_dataset", preferences]
    words += ["--method", "none", "--output_dir", str(out), "--save_steps", "1", *TRAINING]
    assert main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for more in ([], ["--resume_from_checkpoint", "false"]):
        assert main([*words, "--learning_rate", "0.1", *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "already has a model or checkpoints: checkpoint-1, config.json. Choose another `output_dir`" in error
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (out / "config.json").unlink()
    assert main(words) == 2
    assert "already has a model or checkpoints: checkpoint-1. " in capsys.readouterr().err


def test_a_checkpoint_that_is_missing_is_an_error_before_a_model_is_loaded(tmp_path, preferences, capsys):
    words = ["reward", "--model_name_or_path", "no/such", "--preference_dataset", preferences, *TRAINING]
    assert main([*words, "--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", "true"]) == 2
    assert "contains no complete checkpoint. Remove it to" in capsys.readouterr().err
