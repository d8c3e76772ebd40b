"""The script trains, saves and prints, with full models and with an adapter. Only one line imports `trl_rlp`."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer


ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples/scripts/ppo.py"
PROMPTS = ROOT / "../shared/data/prompts"
SMALL = "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --total_episodes 8 --response_length 4"
QUIET = "--save_steps 1 --logging_steps 1 --num_sample_generations 0 --report_to none --disable_tqdm true"


@pytest.fixture
def options(tmp_path):
    tokenizer = tiny_tokenizer()
    sft = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    reward = save(tiny_reward_model(tokenizer, seed=3), tokenizer, tmp_path / "reward")
    folders = ["--sft_model_path", sft, "--reward_model_path", reward, "--output_dir", str(tmp_path / "ppo")]
    return [*SMALL.split(), *QUIET.split(), *folders]


def read_log(folder: Path, step: int = 8) -> list[dict]:
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("column, value", [("prompt", "Name a river:"), ("turns", ["Name a river:", "Another:"])])
def test_the_script_trains_saves_and_prints(tmp_path, monkeypatch, capsys, options, column, value):
    data = tmp_path / "prompts.jsonl"
    Dataset.from_list([{"id": row, column: value} for row in range(20)]).to_json(data)
    arguments = [*options, "--dataset_name", str(data), "--prompt_column", column]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [row for row in read_log(tmp_path / "ppo") if "objective/kl" in row]
    assert [row["episode"] for row in rows] == [4, 8]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ppo") and AutoTokenizer.from_pretrained(tmp_path / "ppo")
    printed = capsys.readouterr().out
    assert "model response" in printed and "Name a river:" in printed


def test_the_script_trains_an_adapter(tmp_path, monkeypatch, options):
    data = tmp_path / "prompts.jsonl"
    Dataset.from_dict({"prompt": [f"{row}:" for row in range(20)]}).to_json(data)
    peft = "--use_peft --lora_r 2 --lora_target_modules q_proj v_proj".split()
    arguments = [*options, *peft, "--dataset_name", str(data)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (tmp_path / "ppo" / "adapter_model.safetensors").is_file()


def test_only_one_line_imports_trl_rlp():
    code = SCRIPT.read_text().split('"""', 2)[2]
    assert [line for line in code.splitlines() if "trl_rlp" in line or "RLP" in line] == [
        "from trl_rlp import PPOConfig, PPOTrainer  # isort: skip"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name, column", [("vicuna_80", "turns"), ("self_instruct_252", "instruction")])
def test_the_script_runs_on_the_prompts_of_its_docstring(tmp_path, options, name, column):
    data = PROMPTS / f"{name}.jsonl"
    if not data.is_file():
        pytest.skip(f"{data} does not exist")
    arguments = [*options, "--dataset_name", str(data), "--prompt_column", column]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, cwd=ROOT, timeout=240)
    assert [row["episode"] for row in read_log(tmp_path / "ppo") if "objective/kl" in row] == [4, 8]
