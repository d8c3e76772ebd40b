"""The script makes anchors, trains with TRL's GRPO, and logs both rewards. It also takes anchors from a folder."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tests.tiny_models import save, tiny_nli, tiny_reward_model, tiny_talker, tiny_tokenizer
from trl_rlp import ExactMatch
from trl_rlp.data.anchors import SemanticAnchors


SCRIPT = Path(__file__).parents[3] / "examples/scripts/grpo_with_anchors.py"
SMALL = "--per_device_train_batch_size 4 --num_generations 2 --max_completion_length 4 --max_steps 2 --bf16 False"
QUIET = "--save_steps 2 --logging_steps 1 --report_to none --disable_tqdm true --use_cpu true"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    save(tiny_talker(tokenizer, ["4", "4", "4", "5"], steps=60), tokenizer, folder / "sft")
    save(tiny_reward_model(tokenizer, seed=3), tokenizer, folder / "reward")
    save(tiny_nli(tokenizer), tokenizer, folder / "nli")
    Dataset.from_dict({"prompt": [f"2 + 2 = ({row}) " for row in range(12)]}).to_json(folder / "prompts.jsonl")
    return folder


def run_script(monkeypatch, folders: Path, output: Path, *more: str) -> dict[str, float]:
    models = {"model_name_or_path": "sft", "reward_model_name_or_path": "reward", "nli_model_name_or_path": "nli"}
    paths = [text for name, folder in models.items() for text in (f"--{name}", str(folders / folder))]
    data = ["--dataset_name", str(folders / "prompts.jsonl"), "--output_dir", str(output)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *SMALL.split(), *QUIET.split(), *paths, *data, *more])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    log = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    return {name: value for row in log for name, value in row.items()}


def test_the_script_makes_anchors_and_trains(tmp_path, monkeypatch, folders):
    log = run_script(monkeypatch, folders, tmp_path / "grpo", "--anchor_generations", "8")
    anchors = SemanticAnchors.load(tmp_path / "grpo" / "anchors")
    assert 0 < len(anchors) <= anchors.num_prompts == 10
    rewards = log["rewards/reward_model/mean"], log["rewards/semantic_anchor/mean"]
    assert log["reward"] == pytest.approx(rewards[0] + 3 * rewards[1], abs=1e-4)
    assert (tmp_path / "grpo" / "model.safetensors").is_file()


def test_the_script_loads_anchors_and_warns_about_scaled_rewards(tmp_path, monkeypatch, caplog, folders):
    samples = {"prompt": [f"2 + 2 = ({row}) " for row in range(12)], "completions": [["4", "4"]] * 12}
    samples = Dataset.from_dict({**samples, "finished": [[True] * 2] * 12})
    SemanticAnchors.from_samples(samples, ExactMatch()).save(tmp_path / "anchors")
    options = ["--anchors", str(tmp_path / "anchors"), "--scale_rewards", "group", "--reward_weights", "1", "0.5"]
    log = run_script(monkeypatch, folders, tmp_path / "grpo", *options)
    assert log["semantic_anchor/anchored_share"] == 1
    rewards = log["rewards/reward_model/mean"], log["rewards/semantic_anchor/mean"]
    assert log["reward"] == pytest.approx(rewards[0] + 0.5 * rewards[1], abs=1e-4)
    assert "`scale_rewards` is 'group'" in caplog.text
    assert not (tmp_path / "grpo" / "anchors").exists()
