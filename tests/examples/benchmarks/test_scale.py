import json
import runpy
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/scale.py"


def test_time_and_memory_are_measured(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.json"
    options = ["--sizes", "20", "300", "--parts", "growth", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[2]))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())["figures"]
    assert results.keys() == {"scale_cluster_time_growth", "scale_prefer_time_growth", "scale_memory_growth"}
    assert results["scale_memory_growth"]["goal"] == 1.3
    assert all(result["better"] == "lower" and result["value"] > 0 for result in results.values())
    assert "300 prompts: cluster" in capsys.readouterr().out


def test_models_cluster_and_score_in_each_process(tmp_path, monkeypatch):
    """Without `torch.distributed.run` there is one process."""
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), "--models", str(tmp_path), "--prompts", "20", "--hidden_size", "16"]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seconds"].keys() == {"cluster", "score"}
    assert len(results["cluster_ids"]) == 20 and all(len(row) == 10 for row in results["rewards"])
    assert len(list((tmp_path / "groups").glob("shard-*.arrow"))) == 3
