import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from trl_rlp.storage import run_folder
from trl_rlp.storage.run_folder import RunFolder, round_name


def test_a_finished_stage_runs_once_and_keeps_its_metrics(tmp_path):
    calls = []

    def work(folder, accuracy):
        calls.append(folder.name)
        (folder / "result.txt").write_text("done")
        return {"accuracy": accuracy}

    for _ in range(2):
        run = RunFolder(tmp_path / "run", {"seed": 1})
        folder = run.stage("policy", work, accuracy=0.5)
    assert calls == ["policy.partial"]
    assert folder == tmp_path / "run" / "policy" and (folder / "result.txt").read_text() == "done"
    assert run.metrics("policy") == {"accuracy": 0.5} and run.results()["policy"]["seconds"] >= 0


@pytest.mark.parametrize(("peaks", "expected"), [([None], None), ([1.5], 1.5), ([1.5, 2.5], 2.5)])
def test_a_stage_stores_the_largest_peak_of_all_processes(tmp_path, monkeypatch, peaks, expected):
    monkeypatch.setattr(run_folder, "PeakMemory", lambda: SimpleNamespace(read=lambda: peaks[0]))
    monkeypatch.setattr(run_folder, "gather_object", lambda own: [*own, *peaks[1:]])
    run = RunFolder(tmp_path, {})
    run.stage("policy", lambda folder: None)
    assert run.results()["policy"]["peak_memory_gib"] == expected


def test_nan_and_infinity_are_saved_as_null(tmp_path):
    run = RunFolder(tmp_path / "run", {})
    folder = run.stage("gate", lambda folder: {"human": {"error": float("nan")}, "list": [float("inf"), 1.0]})
    assert "NaN" not in (folder / "stage.json").read_text()
    assert run.metrics("gate") == {"human": {"error": None}, "list": [None, 1.0]}


def test_an_interrupted_stage_is_not_finished_and_keeps_its_files(tmp_path):
    def interrupted(folder):
        (folder / "shard-0").write_text("half")
        raise KeyboardInterrupt

    run = RunFolder(tmp_path / "run", {})
    with pytest.raises(KeyboardInterrupt):
        run.stage("samples", interrupted)
    assert not run.is_finished("samples") and not (tmp_path / "run" / "samples").exists()

    folder = run.stage("samples", lambda folder: {"found": (folder / "shard-0").read_text()})
    assert run.metrics("samples") == {"found": "half"} and (folder / "shard-0").exists()


def test_a_finished_stage_has_no_shards_any_more(tmp_path):
    def work(folder):
        (folder / "shards").mkdir()
        (folder / "shards" / "shard-00000.arrow").touch()
        (folder / "data").mkdir()

    folder = RunFolder(tmp_path, {}).stage("samples", work)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "stage.json"]


def test_the_callback_hears_of_stages_that_start_inside_the_block_only(tmp_path):
    """A finished stage does not start again."""
    outer, inner = [], []
    first, second = RunFolder(tmp_path / "first", {}), RunFolder(tmp_path / "second", {})
    with RunFolder.on_start(lambda run, name, arguments: outer.append((run.path.name, name))):
        first.stage("sft", lambda folder: None)
        with RunFolder.on_start(lambda run, name, arguments: inner.append(name)):
            second.stage("policy", lambda folder: None)
            first.stage("sft", lambda folder: None)
    first.stage("gate", lambda folder: None)
    assert outer == [("first", "sft"), ("second", "policy")] and inner == ["policy"]


def test_the_callback_may_change_the_arguments_of_the_work(tmp_path):
    run = RunFolder(tmp_path, {})
    with RunFolder.on_start(lambda run, name, arguments: arguments.update(steps=2)):
        run.stage("policy", lambda folder, steps: {"steps": steps}, steps=6)
    assert run.metrics("policy") == {"steps": 2}


def test_a_new_thread_does_not_have_the_callback(tmp_path):
    started, run = [], RunFolder(tmp_path, {})
    with RunFolder.on_start(lambda run, name, arguments: started.append(name)):
        thread = threading.Thread(target=run.stage, args=("sft", lambda folder: None))
        thread.start()
        thread.join()
        run.stage("policy", lambda folder: None)
    assert run.is_finished("sft") and started == ["policy"]


def test_the_check_leaves_a_free_folder_free_and_refuses_that_of_another_run(tmp_path):
    RunFolder.check(tmp_path / "run", {"seed": 1})
    assert not (tmp_path / "run").exists()
    RunFolder(str(tmp_path / "run"), {"seed": 2})
    RunFolder.check(str(tmp_path / "run"), {"seed": 2})
    with pytest.raises(ValueError, match="`seed` was 2 and is 1"):
        RunFolder.check(tmp_path / "run", {"seed": 1})


def test_a_folder_of_another_run_or_of_unknown_origin_is_refused(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 1})
    with pytest.raises(ValueError, match="`seed` was 1 and is 2"):
        RunFolder(tmp_path / "run", {"seed": 2})
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run.json"):
        RunFolder(tmp_path, {})


def test_the_stages_of_a_round_have_its_number(tmp_path):
    """Those of round 1 have none. Arguments of `is_finished` and `metrics` are names of round 1."""
    run, calls, started = RunFolder(tmp_path, {}), [], []
    for number in (1, 2, 2):
        with RunFolder.on_start(lambda run, name, arguments: started.append(name)):
            folder = run.in_round(number).stage(
                "gate", lambda folder, number: calls.append(number) or {"n": number}, number=number
            )
        assert folder == tmp_path / round_name("gate", number)
        assert run.in_round(number).is_finished("gate") and run.in_round(number).metrics("gate") == {"n": number}
    assert calls == [1, 2] and started == ["gate", "gate_2"] and not run.in_round(3).is_finished("gate")
    assert {name: stage["metrics"]["n"] for name, stage in run.in_round(2).results().items()} == {
        "gate": 1,
        "gate_2": 2,
    }
    run.stage("policy", lambda folder: None)
    assert (tmp_path / "policy").is_dir()


WORKING = """
import pathlib, sys, time
from trl_rlp.storage.run_folder import RunFolder

def work(folder):
    print("works", flush=True)
    sys.stdin.readline()
    (folder / "made_by").write_text("first")

RunFolder(sys.argv[1], {}).stage("policy", work)
"""


def test_a_second_program_is_refused_while_the_first_one_works_and_finds_its_result_afterwards(tmp_path):
    command = [sys.executable, "-c", WORKING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "works\n"
        second = RunFolder(tmp_path, {})
        match = rf"Process {first.pid} of another run works in {tmp_path}. Wait until it ends, or end it"
        for name in ("policy", "samples"):
            with pytest.raises(ValueError, match=match):
                second.stage(name, lambda folder: pytest.fail("it works"))
        first.communicate("go on\n")
    folder = second.stage("policy", lambda folder: pytest.fail("it works"))
    assert (folder / "made_by").read_text() == "first"


def test_a_program_that_was_killed_gives_the_folder_free(tmp_path):
    command = [sys.executable, "-c", WORKING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "works\n"
        first.kill()
    assert RunFolder(tmp_path, {}).stage("policy", lambda folder: None).name == "policy"
    assert {path.name for path in tmp_path.iterdir()} == {"policy", "run.json"}


def test_a_stage_that_another_program_has_finished_in_the_meantime_does_not_run_again(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, {})
    run.stage("policy", lambda folder: {"step": 1})
    monkeypatch.setattr(RunFolder, "is_finished", lambda self, name: False)  # as it was a moment ago
    run.stage("policy", lambda folder: pytest.fail("it works"))
    assert run.metrics("policy") == {"step": 1}


def test_a_stage_within_a_stage_leaves_the_folder_claimed(tmp_path):
    run = RunFolder(tmp_path, {})

    def work(folder):
        before = {path.name: path.read_text() for path in tmp_path.glob(".claim-*")}
        run.stage("plan", lambda folder: None)
        assert {path.name: path.read_text() for path in tmp_path.glob(".claim-*")} == before != {}

    run.stage("policy", work)
    assert {path.name for path in tmp_path.iterdir()} == {"policy", "plan", "run.json"}
