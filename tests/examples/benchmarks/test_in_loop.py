import json
import math
import runpy
import sys
from pathlib import Path

import pytest

from trl_rlp import RLPRewardTrainer


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/in_loop.py"
SIZES = (
    "--every 1 --batch 2 --micro_batches 2 --num_generations 2 --human_pairs 8 --prompt_tokens 5 "
    "--completion_tokens 6 --vocabulary 100 --hidden_size 64 --layers 1 --nli_hidden_size 64 --nli_layers 1"
).split()


@pytest.fixture
def data(tmp_path):
    """
    Two questions. The first one has an anchor, "a", with the members "a" and "a.". The second one has none.

    Later answers to the first one are "b", "c" and members. Only "b" and "c" can be asked about, each once.
    """
    rows = [
        {"question": "1?", "samples": ["a", "a.", "a", "d", "a", "b", "c", "b"]},
        {"question": "2?", "samples": ["a", "b", "c", "d", "a", "b", "c", "d"]},
    ]
    file = tmp_path / "clusters/triviaqa_llama13b_500x20.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_results_are_written(data, monkeypatch, capsys):
    output = data / "results.json"
    options = [*SIZES, "--rounds", "1", "--data", str(data), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    train = RLPRewardTrainer.train
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert RLPRewardTrainer.train is train
    results = json.loads(output.read_text())["figures"]
    assert {name: result["goal"] for name, result in results.items()} == {
        "in_loop_share_ppo": 0.15,
        "in_loop_share_grpo": 0.15,
        "in_loop_refinable_reward": 1.05,
        "in_loop_questions_per_completion": 1.0,
    }
    assert all(result["better"] == "lower" and result["value"] > 0 for result in results.values())
    assert results["in_loop_share_ppo"]["value"] < 1 and results["in_loop_share_grpo"]["value"] < 1
    printed = capsys.readouterr().out
    assert "ppo: a rollout takes" in printed and "grpo: a rollout takes" in printed
    assert printed.count("a refinement with 8 human pairs and 2 new ones takes") == 2


def test_the_period_for_the_goal_by_hand():
    """
    A rollout takes 9 s, its anchor rewards 1 s, and a refinement 20 s. For the period k, k + 20 = 0.15 (10 k + 20), so
    k = 17 / 0.5 = 34. Anchor rewards of 2 s of 10 s alone are above the goal.
    """
    find_period = runpy.run_path(str(SCRIPT))["find_period"]
    assert find_period(9.0, 1.0, 20.0) == 34
    assert find_period(8.0, 2.0, 20.0) == math.inf


def test_questions_are_counted(data):
    """Eight completions of the first question a rollout, in two rollouts. Both times, "b" and "c" occur."""
    module = runpy.run_path(str(SCRIPT))
    counts = module["count_questions"](data)
    assert counts["completions"] == 16
    assert counts == {"all": 2 / 16, "most": 2 / 8, "without_cache": 4 / 16, "completions": 16}
