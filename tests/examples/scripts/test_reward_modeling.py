"""The script differs from TRL's by two lines. With TRL's classes the same script gives the same weights."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.reward_runs import policy_samples, preferences
from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer


ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples/scripts/reward_modeling.py"
HUMAN_PAIRS = ROOT / "../shared/data/preferences/pandalm_human_842.jsonl"


@pytest.fixture
def options(tmp_path):
    tokenizer = tiny_tokenizer()
    data = tmp_path / "preferences.jsonl"
    preferences(20).to_json(data)
    model = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    arguments = "--max_steps 3 --per_device_train_batch_size 2 --logging_steps 1 --report_to none".split()
    return [*arguments, "--model_name_or_path", model, "--dataset_name", str(data)]


def run_script(script: Path, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")


def read_losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_only_two_lines_differ_from_the_script_of_trl(tmp_path, monkeypatch, options):
    ours = SCRIPT.read_text()
    code = ours.split('"""', 2)[2]
    theirs = re.sub(r"from trl_rlp import .*", "from trl import RewardConfig, RewardTrainer", code)
    theirs = re.sub(r" *policy_samples=.*\n", "", theirs)
    assert len(set(code.splitlines()) - set(theirs.splitlines())) == 2
    assert "trl_rlp" not in theirs and "RLP" not in theirs and "policy" not in theirs
    twin = tmp_path / "twin.py"
    twin.write_text(theirs)
    run_script(SCRIPT, monkeypatch, [*options, "--output_dir", str(tmp_path / "ours")])
    run_script(twin, monkeypatch, [*options, "--output_dir", str(tmp_path / "theirs"), "--bf16", "False"])
    assert read_losses(tmp_path / "ours") == read_losses(tmp_path / "theirs")
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert all(weights[name].equal(expected[name]) for name in expected)


def test_policy_samples_are_read_from_the_output_folder(tmp_path, monkeypatch, options):
    folder = tmp_path / "refined"
    folder.mkdir()
    policy_samples().to_json(folder / "samples.jsonl")
    run_script(SCRIPT, monkeypatch, [*options, "--output_dir", str(folder), "--method", "uml"])
    assert (folder / "checkpoint-3" / "representation_heads.pt").is_file()
    assert (folder / "model.safetensors").is_file()


@pytest.mark.skipif(not HUMAN_PAIRS.is_file(), reason=f"{HUMAN_PAIRS} does not exist")
def test_the_script_runs_on_human_pairs(tmp_path, options):
    arguments = [*options[:-1], str(HUMAN_PAIRS), "--max_length", "512", "--output_dir", str(tmp_path / "reward")]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, cwd=ROOT, timeout=240)
    assert len(read_losses(tmp_path / "reward")) == 3
