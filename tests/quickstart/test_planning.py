import json
import time

import pytest
import torch
from rich.console import Console

from trl_rlp.quickstart import planning
from trl_rlp.quickstart.planning import Planner, describe_changes
from trl_rlp.quickstart.sizes import ESTIMATES, Sizes, estimate_remaining_seconds
from trl_rlp.storage.run_folder import RunFolder


def build_planner(folder, seconds_left, console=None):
    run = RunFolder(folder, {})
    return Planner(run, Sizes(), time.perf_counter() + seconds_left, console or Console(quiet=True))


def finish(run, stage, seconds):
    """Pretends that a stage took some time."""
    run.stage(stage, lambda folder: None)
    path = run.path / stage / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))


def test_a_free_machine_does_all_the_work(tmp_path):
    planner = build_planner(tmp_path, 520)
    finish(planner.run, "sft", ESTIMATES["sft"](Sizes()))
    assert planner.plan("preferences") == Sizes()
    assert planner.list_plans()["preferences"]["changes"] == ""


def test_each_plan_follows_the_last_stages(tmp_path, capsys):
    """The machine is free until step 1, then half as fast: the plan before step 2 shrinks what is left."""
    planner = build_planner(tmp_path, 520, Console())
    finish(planner.run, "sft", ESTIMATES["sft"](Sizes()))
    assert planner.plan("preferences") == Sizes()
    finish(planner.run, "preferences", 2 * ESTIMATES["preferences"](Sizes()))
    sizes = planner.plan("reward_model")
    assert planner.list_plans()["reward_model"]["slowdown"] == pytest.approx(2)
    assert sizes.preference_questions == 107 and sizes.unlabeled_questions < 105 and sizes.policy_rollouts < 12
    assert 2 * estimate_remaining_seconds("reward_model", sizes) < 520
    assert f"{sizes.policy_rollouts} instead of 12 policy rollouts" in capsys.readouterr().out.replace("\n", " ")


def test_sizes_grow_again_on_a_machine_that_becomes_faster(tmp_path):
    planner = build_planner(tmp_path, 400)
    finish(planner.run, "sft", 2 * ESTIMATES["sft"](Sizes()))
    preferences = planner.plan("preferences")
    assert preferences.preference_questions < 107 and preferences.policy_rollouts < 12
    finish(planner.run, "preferences", ESTIMATES["preferences"](preferences))
    sizes = planner.plan("reward_model")
    assert (sizes.preference_questions, sizes.policy_rollouts) == (preferences.preference_questions, 12)


def test_a_policy_trains_for_the_planned_rollouts_and_the_retrained_one_never_longer(tmp_path):
    planner = build_planner(tmp_path / "run", 200)
    run = RunFolder(tmp_path / "run" / "rlp", {})
    finish(planner.run, "sft", ESTIMATES["sft"](Sizes()))
    steps = []
    with RunFolder.on_start(planner.prepare):
        for stage in ("policy", "retrained_policy"):
            run.stage(stage, lambda folder, args: steps.append(args["max_steps"]), args={"max_steps": 12})
            planner.end += 1000
    assert steps[0] == steps[1] == planner.sizes.policy_rollouts < 12


def test_a_resumed_run_keeps_its_plans(tmp_path):
    finish(build_planner(tmp_path, 520).run, "sft", ESTIMATES["sft"](Sizes()))
    planner = build_planner(tmp_path, 100)
    first = planner.plan("preferences")
    assert first != Sizes() and build_planner(tmp_path, 520).plan("preferences") == first


def test_a_resumed_run_knows_the_plans_of_stages_that_it_skips(tmp_path):
    """The policy got two rollouts. Without its plan, the retrained policy would get all twelve."""
    planner = build_planner(tmp_path, 30)
    finish(planner.run, "sft", ESTIMATES["sft"](Sizes()))
    assert planner.plan("policy").policy_rollouts == 2
    resumed = build_planner(tmp_path, 1000)
    sizes = resumed.plan("retrained_policy")
    assert (sizes.policy_rollouts, sizes.retrained_policy_rollouts) == (2, 2)


def test_threads_are_chosen_before_each_stage_and_restored(tmp_path, monkeypatch):
    before, choices = torch.get_num_threads(), iter([1, 2])
    monkeypatch.setattr(planning, "find_fastest_threads", lambda most: next(choices))
    planner, seen = build_planner(tmp_path, 520), []
    planner.most_threads = 2
    with planner.all_threads(), RunFolder.on_start(planner.prepare):
        for stage in ("sft", "plan_something", "gate"):
            planner.run.stage(stage, lambda folder: seen.append(torch.get_num_threads()))
    assert seen == [1, 1, 2]
    torch.set_num_threads(before)


def test_changes_are_described_by_name():
    assert describe_changes(Sizes(), Sizes()) == ""
    changed = Sizes(unlabeled_questions=32, policy_rollouts=2)
    assert (
        describe_changes(Sizes(), changed) == "32 instead of 105 unlabeled questions, 2 instead of 12 policy rollouts"
    )
