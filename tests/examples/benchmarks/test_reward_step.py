import json
import runpy
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/reward_step.py"


def test_it_writes_its_figures(tmp_path, monkeypatch):
    output = tmp_path / "figures.json"
    sizes = "--rounds 2 --batch 2 --tokens 9 --hidden_size 64 --layers 1".split()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *sizes, "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    figures = json.loads(output.read_text())["figures"]
    assert {name: figure["goal"] for name, figure in figures.items()} == {
        "reward_step_none": 1.03,
        "reward_step_uml": 1.05,
    }
    assert all(figure["better"] == "lower" and figure["value"] > 0 for figure in figures.values())


def test_all_texts_have_the_length_that_was_asked_for():
    module = runpy.run_path(str(SCRIPT))
    tokenizer = module["make_tokenizer"]()
    for prompt, first, second in module["make_texts"](4, 20, seed=1):
        for output in (first, second):
            assert len(tokenizer(prompt + output + tokenizer.eos_token)["input_ids"]) == 20
