import json
import runpy
import sys
from pathlib import Path

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/sampling.py"


def test_results_are_written(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    folder = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "policy")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"question": f"{row}?", "answers": [str(row)]}) + "\n" for row in range(7))
    )
    output = tmp_path / "results.json"
    options = ["--model", folder, "--questions", str(questions), "--prompts", "2", "--num_generations", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--rounds", "1", "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())["figures"]
    assert {name: result["better"] for name, result in results.items()} == {
        "shared_prefill_speed_up_few_shot": "higher",
        "shared_prefill_speed_up_plain": "higher",
        "generator_for_each_prompt": "lower",
    }
    assert all(result["value"] > 0 for result in results.values())
