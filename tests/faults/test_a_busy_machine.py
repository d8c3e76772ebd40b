"""Other programs use the cores: work is cut and reported, and threads do not wait for each other."""

import subprocess
import sys
import time

import pytest
from rich.console import Console

from trl_rlp.quickstart.planning import Planner
from trl_rlp.quickstart.sizes import ESTIMATES, Sizes
from trl_rlp.quickstart.threads import find_fastest_threads
from trl_rlp.storage.run_folder import RunFolder


@pytest.fixture
def busy_cores():
    """Three programs that never wait, on as many cores as this process may use."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    yield
    for program in programs:
        program.kill()
        program.wait()


def simulate_run(folder, monkeypatch, slowdowns):
    """
    Runs the planner over all stages on a simulated clock. `slowdowns` has the slowdown of each stage by name.

    Returns the seconds of the whole run, and the planner.
    """
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    run, rlp = RunFolder(folder, {}), RunFolder(folder / "rlp", {})
    planner = Planner(run, Sizes(), 0.9 * 600, Console(quiet=True))
    planner.most_threads = 1

    def work(stage_folder, args):
        clock[0] += slowdowns[name] * ESTIMATES[name](planner.sizes)

    with RunFolder.on_start(planner.prepare):
        for name in ESTIMATES:
            if name in ("preferences", "reward_model", "outcome"):
                planner.plan(name)
            (run if name in ("sft", "preferences", "outcome") else rlp).stage(name, work, args={})
    return clock[0], planner


def test_a_run_on_a_machine_that_is_three_times_as_slow_ends_in_time(tmp_path, monkeypatch):
    """Three busy programs on two cores. The first plan came too late, and later stages were not planned at all."""
    seconds, planner = simulate_run(tmp_path, monkeypatch, dict.fromkeys(ESTIMATES, 3.0))
    assert seconds < 600
    assert any(plan["changes"] for plan in planner.list_plans().values())


def test_a_machine_that_becomes_busy_in_the_middle_costs_rollouts_and_not_the_budget(tmp_path, monkeypatch):
    """The machine is free until the first policy is trained, and then half as fast."""
    stages = list(ESTIMATES)
    late = stages.index("policy")
    slowdowns = {name: 1.0 if number < late else 2.2 for number, name in enumerate(stages)}
    seconds, planner = simulate_run(tmp_path, monkeypatch, slowdowns)
    assert seconds < 720
    assert planner.sizes.policy_rollouts == Sizes().policy_rollouts
    is_shorter = planner.sizes.retrained_policy_rollouts < Sizes().retrained_policy_rollouts
    assert planner.sizes.evaluation_questions < Sizes().evaluation_questions or is_shorter


@pytest.mark.slow
def test_one_thread_is_chosen_if_threads_wait_for_each_other(busy_cores):
    """Two waiting threads are ten times slower than one here. Large matrix products did not show it."""
    time.sleep(2)
    assert find_fastest_threads(2) == 1
