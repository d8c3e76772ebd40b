"""The script trains with TRL's RLOO, refines the reward model, and resumes from a checkpoint."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tests.reward_runs import preferences
from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_talker, tiny_tokenizer


SCRIPT = Path(__file__).parents[3] / "examples/scripts/rloo_refined.py"
SMALL = "--per_device_train_batch_size 4 --num_generations 2 --max_completion_length 4 --max_steps 3 --bf16 False"
QUIET = "--save_steps 1 --logging_steps 1 --report_to none --disable_tqdm true --use_cpu true"


@pytest.fixture
def arguments(tmp_path):
    tokenizer = tiny_tokenizer()
    talker = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 1024}
    models = {
        "model_name_or_path": tiny_talker(tokenizer, ["4", "4", "4", "5"], steps=60),
        "reward_model_name_or_path": tiny_reward_model(tokenizer, seed=3, **talker),
        "nli_model_name_or_path": tiny_nli(tokenizer),
    }
    data = {
        "dataset_name": Dataset.from_dict({"prompt": [f"2 + 2 = ({row}) " for row in range(12)]}),
        "preference_dataset_name": preferences(20),
    }
    options = {name: save(model, tokenizer, tmp_path / name) for name, model in models.items()}
    for name, dataset in data.items():
        options[name] = str(tmp_path / f"{name}.jsonl")
        dataset.to_json(options[name])
    options |= {"output_dir": str(tmp_path / "rloo"), "anchor_generations": "6", "refine_every": "1"}
    return [text for name, value in options.items() for text in (f"--{name}", value)]


def run_script(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *SMALL.split(), *QUIET.split(), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def read_log(folder: Path) -> list[dict]:
    """Reads the log of the last checkpoint, without times."""
    log = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    return [
        {name: value for name, value in row.items() if "seconds" not in name and "time" not in name} for row in log
    ]


def test_the_script_refines_and_resumes(tmp_path, monkeypatch, arguments):
    run_script(monkeypatch, *arguments)
    log = read_log(tmp_path / "rloo")
    assert "refinement/count" not in log[0]
    assert [row["refinement/count"] + row["refinement/skipped"] for row in log[1:]] == [1, 2]
    checkpoint = tmp_path / "rloo" / "checkpoint-2"
    assert (checkpoint / "reward_refinement" / "reward_model" / "reward_model.safetensors").is_file()
    run_script(monkeypatch, *arguments, "--resume_from_checkpoint", str(checkpoint))
    assert read_log(tmp_path / "rloo") == log


def test_refinements_start_from_the_model_that_the_reward_model_started_from(tmp_path, monkeypatch, arguments):
    """The reward model has another size than the policy, so only its own start model fits."""
    tokenizer = tiny_tokenizer()
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    options["--reward_model_name_or_path"] = save(tiny_reward_model(tokenizer), tokenizer, tmp_path / "small")
    with pytest.raises(ValueError, match="weights of `base_model` do not fit the reward model"):
        run_script(monkeypatch, *(text for pair in options.items() for text in pair))
    options["--reward_base_model"] = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "base")
    run_script(monkeypatch, *(text for pair in options.items() for text in pair))
    assert "refinement/count" in read_log(tmp_path / "rloo")[-1]
