import json
import runpy
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/reward_step.py"


def test_results_are_written(tmp_path, monkeypatch):
    output = tmp_path / "results.json"
    sizes = "--rounds 2 --batch 2 --tokens 9 --hidden_size 64 --layers 1".split()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *sizes, "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())["figures"]
    assert {name: result["goal"] for name, result in results.items()} == {
        "reward_step_none": 1.03,
        "reward_step_uml": 1.05,
    }
    assert all(result["better"] == "lower" and result["value"] > 0 for result in results.values())


def test_all_texts_have_the_requested_length():
    module = runpy.run_path(str(SCRIPT))
    tokenizer = module["make_tokenizer"]()
    for prompt, first, second in module["make_texts"](4, 20, seed=1):
        for completion in (first, second):
            assert len(tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]) == 20
