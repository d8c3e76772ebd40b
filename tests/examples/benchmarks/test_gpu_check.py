"""A rehearsal of the GPU check on the CPU, with tiny models. The sections run in this process, where it is faster."""

import functools
import importlib.util
import json
import sys
import warnings
from pathlib import Path

import psutil
import pytest
import torch


FOLDER = Path(__file__).parents[3] / "examples/benchmarks"
MEASURING = ("roofs", "sampling", "scoring", "nli", "reward", "ppo", "stages")


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def check():
    return importlib.import_module("gpu_check")


@functools.cache
def run_in_process(name: str) -> dict:
    """Runs a section once for all tests."""
    results: dict = {}
    check = importlib.import_module("gpu_check")
    section = vars(importlib.import_module(check.SECTIONS[name][0]))[name]
    section("tiny", lambda key, value: results.update({key: json.loads(json.dumps(value))}))
    return results


def run_check(check, monkeypatch, output, *options) -> dict:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--output", str(output), *options])
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    check.main()
    return json.loads(output.read_text())


def find_errors(value) -> list:
    if isinstance(value, dict):
        own = [value["error"]] if "error" in value else []
        return own + [error for item in value.values() for error in find_errors(item)]
    return []


@pytest.mark.parametrize("name", MEASURING)
def test_every_section_measures_on_the_cpu(check, name):
    results = run_in_process(name)
    assert results and find_errors(results) == []
    for section, result, _, _ in check.GOALS.values():
        if section == name:
            assert results[result] > 0


def test_ppo_and_grpo_measure_each_phase():
    results = run_in_process("ppo")
    for name in ("ppo_0", "grpo_0"):
        assert results[name]["rollouts"] == 2
        assert all(results[name][phase] > 0 for phase in ("generation", "optimization"))


def test_the_stages_of_a_run_are_listed():
    names = [row["stage"] for row in run_in_process("stages")["memory_before_stages"]]
    assert names[0] == "reward_model" and names[-1] == "retrained_policy" and "synthetic_preferences" in names


def test_a_section_runs_in_its_own_process(check, tmp_path, monkeypatch, capsys):
    content = run_check(check, monkeypatch, tmp_path / "check.json", "--size", "tiny", "--sections", "roofs")
    assert content["sections"]["roofs"]["status"] == "passed"
    assert content["sections"]["roofs"]["results"]["matmul_float32_tflops"] > 0
    assert "roofs      passed" in capsys.readouterr().out


def test_a_section_that_fails_or_is_too_slow_keeps_its_results_and_does_not_end_the_check(
    check, tmp_path, monkeypatch, capsys
):
    """The sections come from a file beside a copy of the script, because each runs in a new process."""
    script = tmp_path / "gpu_check.py"
    text = (FOLDER / "gpu_check.py").read_text()
    begin, end = text.index("SECTIONS = {"), text.index("GOALS = {")
    sections = 'SECTIONS = {name: ("sections", 60) for name in ("broken", "slow", "fine")}\n\n'
    script.write_text((text[:begin] + sections + text[end:]).replace("CPU_DEADLINE = 600", "CPU_DEADLINE = 3"))
    (tmp_path / "sections.py").write_text(
        "import subprocess\n"
        "def broken(size, record):\n    record('before', 1)\n    raise ValueError('no such kernel')\n"
        # In a session of its own, as `accelerate launch` starts its processes.
        "def slow(size, record):\n    child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    record('child', child.pid)\n    child.wait()\n"
        "def fine(size, record):\n    record('utilization', 0.5)\n"
    )
    spec = importlib.util.spec_from_file_location("broken_check", script)
    broken_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(broken_check)
    monkeypatch.setattr(broken_check, "GOALS", {"scoring": ("fine", "utilization", 0.4, "higher")})
    content = run_check(broken_check, monkeypatch, tmp_path / "check.json")
    statuses = {name: section["status"] for name, section in content["sections"].items()}
    assert statuses == {"broken": "failed", "slow": "too slow", "fine": "passed"}
    assert content["sections"]["broken"]["last_lines"][-1] == "ValueError: no such kernel"
    assert content["sections"]["broken"]["results"] == {"before": 1}
    child = content["sections"]["slow"]["results"]["child"]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert content["figures"] == {"gpu_scoring": {"value": 0.5, "goal": 0.4, "better": "higher"}}
    assert "pass gpu_scoring: 0.5 (goal >= 0.4)" in capsys.readouterr().out


def test_time_that_a_section_leaves_unused_is_for_the_later_ones(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SECTIONS", {"quick": ("", 100), "second": ("", 50), "last": ("", 500)})
    monkeypatch.setattr(check, "has_cuda", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path / "check.json")])
    deadlines = []
    outcome = {"status": "passed", "seconds": 0.0}
    monkeypatch.setattr(check, "run_section", lambda name, _, seconds: deadlines.append(round(seconds, -1)) or outcome)
    monkeypatch.setattr(check, "GOALS", {})
    check.main()
    assert deadlines == [100, 150, 480]


def test_lines_of_a_program_are_read_while_it_runs(tmp_path):
    programs = importlib.import_module("gpu_programs")
    seen = tmp_path / "seen"
    wait = "for _ in range(200):\n    if path.exists():\n        break\n    time.sleep(0.1)\nelse:\n    sys.exit(1)\n"
    code = f"import sys, time, pathlib\npath = pathlib.Path({str(seen)!r})\nprint('begin')\n{wait}print('end')"
    status, lines = programs.run_program([sys.executable, "-c", code], lambda line: seen.touch())
    assert (status, lines) == (0, ["begin", "end"])


def test_the_outcome_of_a_test_is_recorded_when_it_ends(monkeypatch):
    """If a later test takes too long, pytest writes no report."""
    programs = importlib.import_module("gpu_programs")

    def never_ends(command, on_line):
        on_line("collected 2 items")
        on_line("tests/gpu/test_inference.py::test_scores[cuda-fp32] PASSED        [ 50%]")
        raise KeyboardInterrupt

    results: dict = {}
    monkeypatch.setattr(programs, "run_program", never_ends)
    with pytest.raises(KeyboardInterrupt):
        programs.tests("tiny", lambda name, value: results.update({name: dict(value)}))
    assert results == {"outcomes": {"test_scores[cuda-fp32]": {"outcome": "passed"}}}


def test_a_batch_that_does_not_fit_into_the_memory_is_a_result(monkeypatch):
    inference = importlib.import_module("gpu_inference")

    def fill_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(inference, "generate_plainly", fill_memory)
    shape = inference.SAMPLING["tiny"]
    model = inference.build_llama(inference.LlamaForCausalLM, "tiny", torch.float32)
    variants = inference.measure_sampling(model, shape, budget=64, seconds=0, bandwidth=1.0)["variants"]
    assert variants["plain"]["error"] == "OutOfMemoryError: CUDA out of memory."
    assert variants["engine"]["tokens_per_second"] > 0
    monkeypatch.setattr(model, "generate_batch", lambda *_: {}, raising=False)  # its thread has failed
    assert "0 of 4 rows" in inference.measure_generate_batch(model, shape, budget=64, seconds=0)["error"]


def test_only_waits_are_counted():
    training = importlib.import_module("gpu_training")
    with training.count_waits() as waits:
        warnings.warn("Synchronization debug mode does not yet detect all synchronizing operations")
        warnings.warn("called a synchronizing CUDA operation")
    assert list(waits.values()) == [1]


def test_a_trainer_measures_its_step_itself():
    measurement = importlib.import_module("gpu_measurement")
    result = measurement.take_turns({"step": lambda: 7.0}, seconds=60, rounds=2, measure=lambda step: step())["step"]
    assert result["seconds"] == 7.0 and set(result["times"]) == {7.0}


def test_the_whole_check_takes_at_most_eight_minutes(check):
    assert sum(seconds for _, seconds in check.SECTIONS.values()) <= 480


def test_a_missing_gpu_and_an_unknown_section_are_errors(check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "has_cuda", lambda: False)
    expected = [(["--device", "cuda"], "finds no CUDA device"), (["--sections", "ppo,x"], "unknown names ['x']")]
    for options, message in expected:
        with pytest.raises(SystemExit):
            run_check(check, monkeypatch, tmp_path / "check.json", *options)
        assert message in capsys.readouterr().err


def test_the_gpu_tests_are_found_and_skipped_without_a_gpu():
    outcomes = run_in_process("tests")["outcomes"]
    assert len(outcomes) > 10 and {case["outcome"] for case in outcomes.values()} <= {"skipped", "passed"}


def test_training_runs_as_a_launched_program():
    """FSDP2 needs a GPU. On the CPU, the same command trains, saves and resumes without it."""
    results = run_in_process("fsdp2")["with"]
    assert results.keys() == {"ppo", "uml"} and find_errors(results) == []
    for result in results.values():
        assert result["resumed_deviation"] < 1e-5 and result["saved_files"] == ["model.safetensors"]


@pytest.mark.slow
def test_the_whole_check_runs_on_the_cpu(check, tmp_path, monkeypatch):
    content = run_check(check, monkeypatch, tmp_path / "check.json", "--size", "tiny")
    assert {section["status"] for section in content["sections"].values()} == {"passed"}
    assert len(content["figures"]) == len(check.GOALS)
