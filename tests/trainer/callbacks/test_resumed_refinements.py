"""Runs with anchors and refinements that are killed at any moment. A resumed run repeats the one that was not."""

import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback, TrainerState

from tests.ppo_runs import CLOCK, ppo_trainer, prompts
from tests.programs import require_agreement, run_program
from tests.refinement_runs import SameParity, anchors, policy_trainer, refinable_reward, refinement
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.trainer.callbacks import refinement_state
from trl_rlp.trainer.callbacks.reward_refinement import RewardRefinement
from trl_rlp.trainer.checkpoints import last_checkpoint


NUM_ROLLOUTS = 5
KINDS = ("grpo", "rloo", "ppo")
DATA = prompts(24)
"""More prompts than a run reads. In a second pass over them, GRPO and RLOO themselves do not resume."""


def make_run(folder: Path, kind: str, has_callback: bool = True, **settings):
    """Builds a run of five rollouts with a checkpoint after each. It is evaluated and refined after two and four."""
    reward = refinable_reward()
    sources = [reward, SemanticAnchorReward(anchors(DATA), SameParity())]
    settings = {"reward_weights": [1.0, 3.0], "save_strategy": "steps", "save_steps": 1, **settings}
    settings |= {"eval_strategy": "steps", "eval_steps": 2}
    schedule = {"every": settings.pop("every", 2), "drift_threshold": settings.pop("drift_threshold", None)}
    given = {"anchors": anchors(DATA), "equivalence": SameParity()}
    callbacks = [refinement(folder, reward, **given, **schedule)] if has_callback else []
    if kind == "ppo":
        settings = {"num_generations": 2, "num_ppo_epochs": 1, "total_episodes": 4 * NUM_ROLLOUTS, **settings}
        trainer = ppo_trainer(
            folder, DATA, reward_funcs=sources, callbacks=callbacks, eval_dataset=prompts(2), **settings
        )
    else:
        settings = {"max_steps": NUM_ROLLOUTS, **settings}
        trainer = policy_trainer(folder, sources, kind, DATA, callbacks, prompts(4), **settings)
    return trainer, reward


def get_log(trainer) -> list[dict]:
    """Returns everything that a run logged, without timings and the summary at its end."""
    clocks = {*CLOCK, "refinement/seconds"}
    return [{k: v for k, v in row.items() if k not in clocks} for row in trainer.state.log_history[:-1]]


def require_same_run(run, expected) -> None:
    (trainer, reward), (straight, straight_reward) = run, expected
    assert get_log(trainer) == get_log(straight)
    for model, other in ((trainer.model, straight.model), (reward.model, straight_reward.model)):
        state = other.state_dict()
        assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    for name in ("mean", "standard_deviation", "num_rollouts", "pending_metrics"):
        assert getattr(reward, name) == getattr(straight_reward, name), name
    assert reward.buffer.state() == straight_reward.buffer.state()


@pytest.fixture(scope="module")
def straight_runs(tmp_path_factory):
    """Runs that nobody kills, by their trainer. Each is made when it is first needed."""
    runs = {}

    def get(kind: str):
        if kind not in runs:
            runs[kind] = make_run(tmp_path_factory.mktemp(kind), kind)
            runs[kind][0].train()
        return runs[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_straight_run_refines_twice(straight_runs, kind):
    """Otherwise the other tests would compare nothing."""
    trainer, reward = straight_runs(kind)
    rows = [row for row in get_log(trainer) if "refinement/count" in row]
    assert [row["refinement/count"] for row in rows] == [1.0, 2.0]
    initial = refinable_reward().model.state_dict()
    assert not any(torch.equal(weight, initial[name]) for name, weight in reward.model.named_parameters())
    if kind == "ppo":
        shifts = [row["refinement/shift"] for row in rows]
        assert trainer.ppo_state.value_shift == pytest.approx(sum(shifts)) and all(shifts)


@pytest.mark.parametrize("kind, step", [("grpo", 2), ("grpo", 3), ("rloo", 2), ("ppo", 2), ("ppo", 3)])
def test_killed_right_after_a_checkpoint(straight_runs, tmp_path, kind, step):
    """
    The checkpoint of step 2 has a new reward model, whose metrics are not logged yet. That of step 3 has recorded one
    rollout of the window. The second run has an output folder of its own.
    """
    straight = straight_runs(kind)
    resumed = make_run(tmp_path, kind)
    resumed[0].train(resume_from_checkpoint=f"{straight[0].args.output_dir}/checkpoint-{step}")
    require_same_run(resumed, straight)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def interrupt_in(monkeypatch, moment: str, trainer) -> None:
    """Makes a run fail at its fourth step: in the refinement, or between two parts of the checkpoint."""

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                owner, name = {
                    "the training of a refinement": (RewardRefinement, "replace_unless_worse"),
                    "the files of the reward": (refinement_state.parquet, "write_table"),
                    "the end of a checkpoint": (TrainerState, "save_to_json"),
                }[moment]
                monkeypatch.setattr(owner, name, interrupt)

    trainer.add_callback(Interrupt())


@pytest.mark.parametrize(
    "kind, moment",
    [
        ("grpo", "the training of a refinement"),
        ("ppo", "the training of a refinement"),
        ("grpo", "the files of the reward"),
        ("rloo", "the end of a checkpoint"),
    ],
)
def test_killed_between_two_checkpoints(straight_runs, tmp_path, monkeypatch, kind, moment):
    """The last complete checkpoint is the third, although the folder of the fourth may be there."""
    killed = make_run(tmp_path, kind)[0]
    with monkeypatch.context() as patched:
        interrupt_in(patched, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            killed.train()
    assert (tmp_path / "checkpoint-4").exists() == (moment != "the training of a refinement")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    resumed = make_run(tmp_path, kind)
    resumed[0].train(resume_from_checkpoint=last_checkpoint(tmp_path))
    require_same_run(resumed, straight_runs(kind))


def test_killed_by_signal_9_while_it_writes_the_reward_model(straight_runs, tmp_path):
    result = run_program(Path(__file__).with_name("killed_run.py"), tmp_path, torch.get_num_threads())
    assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]
    assert (tmp_path / "checkpoint-4" / refinement_state.FOLDER).is_dir()
    resumed = make_run(tmp_path, "grpo")
    resumed[0].train(resume_from_checkpoint=last_checkpoint(tmp_path))
    require_same_run(resumed, straight_runs("grpo"))


def test_two_processes_stay_equal_and_resume(tmp_path):
    """Also if the equivalence fails on one, if the gate refuses a model, and under FSDP2. A monitor stops both."""
    require_agreement(Path(__file__).with_name("two_process_refinement.py"), tmp_path)


SCHEDULES = {
    "drift": ("ppo", {"every": 4, "drift_threshold": 0.2}, 4),
    "rollouts of two steps": ("grpo", {"steps_per_generation": 2, "save_steps": 2, "max_steps": 8}, 4),
}


@pytest.mark.parametrize("kind, settings, step", SCHEDULES.values(), ids=SCHEDULES)
def test_other_schedules_resume(tmp_path, kind, settings, step):
    """Within a rollout of several steps, GRPO and RLOO themselves do not resume."""
    straight = make_run(tmp_path, kind, **settings)
    straight[0].train()
    assert any("refinement/count" in row for row in straight[0].state.log_history)
    resumed = make_run(tmp_path, kind, **settings)
    resumed[0].train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    require_same_run(resumed, straight)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_trl_itself_resumes_exactly_in_the_first_pass_over_the_prompts(tmp_path, kind):
    """Without the callback. This is why the runs above have enough prompts."""
    straight = make_run(tmp_path, kind, has_callback=False, max_steps=3)
    straight[0].train()
    resumed = make_run(tmp_path, kind, has_callback=False, max_steps=3)
    resumed[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert get_log(resumed[0]) == get_log(straight[0])


def test_checkpoint_of_a_run_without_refinements_is_refused(tmp_path):
    make_run(tmp_path, "grpo", has_callback=False, max_steps=1)[0].train()
    with pytest.raises(ValueError, match="is a checkpoint of a run without `RewardRefinementCallback`"):
        make_run(tmp_path, "grpo")[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_only_the_policy_is_saved_with_save_only_model(tmp_path):
    make_run(tmp_path, "grpo", save_only_model=True, max_steps=1)[0].train()
    assert not list(tmp_path.glob(f"checkpoint-*/{refinement_state.FOLDER}"))
    with pytest.raises(ValueError, match="or of one with `save_only_model`"):
        make_run(tmp_path, "grpo")[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_deleted_checkpoints_take_their_reward_models_with_them(tmp_path):
    make_run(tmp_path, "grpo", save_total_limit=1, max_steps=2)[0].train()
    parts = [path.parent.name for path in tmp_path.glob(f"checkpoint-*/{refinement_state.FOLDER}")]
    assert parts == ["checkpoint-2"]
