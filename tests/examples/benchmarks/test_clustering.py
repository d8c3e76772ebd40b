import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.tiny_models import save, tiny_nli, tiny_tokenizer


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/clustering.py"


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path):
    """Small versions of the three files. A line separator within a text must not end its record."""
    short = [{"question": f"{row}?", "samples": ["a", "B", "b ", "", "c d", "a"]} for row in range(5)]
    write_lines(tmp_path / "clusters/triviaqa_llama13b_500x20.jsonl", short)
    texts = [letter * 70 for letter in "abcdef"]
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"{row}?"}],
            "chosen": [{"role": "assistant", "content": texts[side]}],
            "rejected": [{"role": "assistant", "content": texts[side + 1]}],
        }
        for row in range(3)
        for side in (0, 2, 4)
    ]
    write_lines(tmp_path / "preferences/pandalm_human_842.jsonl", pairs)
    answers = [{"text": "a", "correct": True}, {"text": "a.", "correct": True}, {"text": "\u2028b", "correct": False}]
    write_lines(tmp_path / "clusters/evouna_tq_1000.jsonl", [{"question": "q?", "answers": answers}] * 2)
    return tmp_path


def test_all_ways_agree_and_the_results_are_written(data, monkeypatch, capsys):
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer, initializer_range=1.0, max_position_embeddings=512)
    folder = save(model, tokenizer, data / "nli")
    output = data / "results.json"
    options = ["--model", folder, "--data", str(data), "--rounds", "2", "--prompts", "2", "--long_prompts", "1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--num_generations", "5", "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())["figures"]
    assert {name for name, result in results.items() if result["better"] == "lower"} == {
        "evouna_correct_and_incorrect_share_a_group"
    }
    assert results["triviaqa_ours_speed_up_over_leader_loop"]["goal"] == 6
    assert results["triviaqa_ours_speed_up_over_full_matrix"]["goal"] == 4
    assert all(result["value"] > 0 for name, result in results.items() if "speed_up" in name)
    assert results["evouna_two_correct_share_a_group"]["value"] == 1
    assert "2 rounds of 2 prompts, 5 completions per prompt" in capsys.readouterr().out
