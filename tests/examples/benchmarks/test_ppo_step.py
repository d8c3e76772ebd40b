import importlib.util
import json
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/ppo_step.py"
SIZES = {
    "rollouts": 1,
    "batch": 2,
    "micro_batches": 2,
    "epochs": 2,
    "prompt_tokens": 5,
    "completion_tokens": 6,
    "vocabulary": 100,
    "hidden_size": 64,
    "layers": 1,
    "checkpointing": 0,
}
TOKENS = [2, 2 * 4 * 6, 2 * 2 * 4 * (5 + 6)]
OPTIONS = [f"--{name}={value}" for name, value in SIZES.items()]


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("ppo_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_measurement(speed=1.0, memory=400.0, tokens=TOKENS):
    keys = ("episodes_per_second", "peak_memory", "memory_in_training", "tokens", "versions")
    return dict(zip(keys, (speed, memory, memory / 2, tokens, "trl"), strict=True))


def test_worker_of_ours_measures_and_trains_on_full_completions(benchmark):
    ours = benchmark.measure("ours", sys.executable, SIZES)
    assert ours["tokens"] == TOKENS
    assert ours["episodes_per_second"] > 0
    assert ours["peak_memory"] > ours["memory_in_training"] > 0
    assert f"trl {version('trl')}," in ours["versions"]
    benchmark.require_equal_work({"ours": ours}, SIZES)


def test_results_are_written(benchmark, tmp_path, monkeypatch, capsys):
    """The ratios of the speeds are 1.5, 3 and 2, so their median is 2. The trainer of TRL 1.12 is not run."""
    speeds = {"ours": iter([3.0, 6.0, 4.0]), "former": iter([2.0, 2.0, 2.0])}
    calls = []

    def measure(side, python, sizes):
        calls.append((side, python))
        assert sizes == SIZES
        return make_measurement(next(speeds[side]), 300.0 if side == "ours" else 400.0)

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "make_environment", lambda folder: str(folder / "python"))
    output, environment = tmp_path / "results.json", tmp_path / "former"
    options = ["--output", str(output), "--rounds", "3", "--former_environment", str(environment)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, *OPTIONS])
    benchmark.main()
    assert json.loads(output.read_text())["figures"] == {
        "ppo_step_episodes_per_second": {"value": 2.0, "goal": 1.25, "better": "higher"},
        "ppo_step_peak_memory": {"value": 0.75, "goal": 0.8, "better": "lower"},
    }
    ours, former = ("ours", sys.executable), ("former", str(environment / "python"))
    assert calls == [ours, former, former, ours, ours, former]
    assert "ours / former, memory_in_training: 0.750" in capsys.readouterr().out


@pytest.mark.parametrize("side", ["ours", "former"])
def test_unequal_work_is_an_error(benchmark, side):
    round_results = {"ours": make_measurement(), "former": make_measurement()}
    round_results[side] = make_measurement(tokens=[TOKENS[0], TOKENS[1] - 1, TOKENS[2]])
    with pytest.raises(SystemExit, match=rf"'{side}' has \[2, 47, 176\] .*, expected \[2, 48, 176\]"):
        benchmark.require_equal_work(round_results, SIZES)


def test_failed_worker_is_an_error(benchmark):
    with pytest.raises(SystemExit, match=r"The worker of 'ours' failed.\n(.|\n)*--layers"):
        benchmark.measure("ours", sys.executable, {**SIZES, "layers": "many"})


def test_environment_is_created_once_and_again_after_an_interruption(benchmark, tmp_path, monkeypatch):
    created, installed = [], []
    monkeypatch.setattr(
        venv, "create", lambda folder, **options: (created.append(folder), folder.mkdir(exist_ok=True))
    )

    def fail(command, check):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    folder = tmp_path / "trl-1.12"
    with pytest.raises(subprocess.CalledProcessError):
        benchmark.make_environment(folder)
    monkeypatch.setattr(subprocess, "run", lambda command, check: installed.append(command[4:]))
    for _ in range(2):
        assert benchmark.make_environment(folder) == str(folder / "bin/python")
    assert created == [folder, folder]
    assert installed == [["--quiet", "torch==2.13.0"], ["--quiet", "trl==1.12.0", "transformers==5.24.0"]]
