"""Tables reach the trackers whose run is active, and each stage has its own run. Fakes stand for the trackers."""

import sys
from contextlib import nullcontext
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace

import pytest
from datasets import Dataset
from transformers.integrations import TrackioCallback

from tests.ppo_runs import ppo_trainer, prompts
from tests.refinement_runs import policy_trainer, refinable_reward, refinement
from tests.reward_runs import rlp_trainer
from tests.tiny_models import tiny_tokenizer
from trl_rlp.trainer import tracking
from trl_rlp.trainer.tracking import MAX_ROWS, log_preferences, log_table, stage_run, start_trackio_run


MAIN = SimpleNamespace(is_world_process_zero=True, global_step=3)
BOTH = SimpleNamespace(report_to=["wandb", "trackio"], run_name=None)
CHAT = [{"role": "user", "content": "Name a river:"}, {"role": "assistant", "content": "The Rhine."}]


class FakeTracker(ModuleType):
    """A tracker that keeps its tables. `Table` and `log` have the arguments of wandb 0.31 and trackio 0.43."""

    def __init__(self, name: str):
        super().__init__(name)
        self.tables: list[tuple[str, list[dict]]] = []
        self.exit_codes: list[int] = []

    @staticmethod
    def Table(columns=None, data=None, dataframe=None, rows=None, optional=True, allow_mixed_types=False):
        assert columns is data is rows is None
        return dataframe.to_dict(orient="records")

    def log(self, metrics, step=None):
        self.tables += metrics.items()


@pytest.fixture
def trackers(monkeypatch):
    """Makes wandb and trackio importable, each with an active run."""
    wandb, trackio = FakeTracker("wandb"), FakeTracker("trackio")
    wandb.run = "a run"

    def finish(exit_code):
        wandb.run = None
        wandb.exit_codes.append(exit_code)

    wandb.finish = finish
    trackio.context_vars = ModuleType("trackio.context_vars")
    trackio.context_vars.current_run = ContextVar("current_run", default=None)
    trackio.context_vars.current_run.set("a run")
    for module in (wandb, trackio, trackio.context_vars):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for tracker in ("wandb", "trackio"):
        monkeypatch.setattr(tracking, f"is_{tracker}_available", lambda: True)
        monkeypatch.setattr(f"trl.extras.profiling.is_{tracker}_available", lambda: False)  # it would log times
    return SimpleNamespace(wandb=wandb, trackio=trackio, all=(wandb, trackio))


class RecordedTrackioCallback(TrackioCallback):
    """Counts how often it starts a run."""

    def __init__(self, trackio: FakeTracker):
        self.trackio, self.num_started = trackio, 0

    def setup(self, args, state, model, **kwargs):
        self.num_started += 1
        self.trackio.context_vars.current_run.set("a run")

    def on_log(self, args, state, control, **kwargs):
        """Logs nothing."""


def test_messages_of_a_table_become_text_and_numbers_stay(trackers):
    rows = [{"prompt": CHAT, "score": 0.5, "sizes": [2, 1], "empty": None, "all": []}]
    log_table("tried", rows, BOTH, MAIN)
    text = "user: Name a river:\nassistant: The Rhine."
    row = {"step": 3, "prompt": text, "score": 0.5, "sizes": "[2, 1]", "empty": None, "all": "[]"}
    assert [tracker.tables for tracker in trackers.all] == [[("tried", [row])]] * 2


def test_a_table_has_at_most_so_many_rows(trackers):
    log_table("tried", ({"row": row} for row in range(10 * MAX_ROWS)), BOTH, MAIN)
    ((_, rows),) = trackers.trackio.tables
    assert [row["row"] for row in rows] == list(range(MAX_ROWS))


def test_only_active_runs_of_the_main_process_get_a_table(trackers):
    rows = [{"score": 1.0}]
    log_table("tried", rows, SimpleNamespace(report_to=[]), MAIN)
    log_table("tried", rows, BOTH, SimpleNamespace(is_world_process_zero=False, global_step=3))
    trackers.wandb.run = None
    trackers.trackio.context_vars.current_run.set(None)
    log_table("tried", rows, BOTH, MAIN)
    assert [tracker.tables for tracker in trackers.all] == [[], []]


def test_preferences_without_text_are_decoded(trackers):
    tokenizer = tiny_tokenizer()
    ids = {f"{side}_ids": [tokenizer(side)["input_ids"]] for side in ("chosen", "rejected")}
    log_preferences(Dataset.from_dict(ids), tokenizer, BOTH, MAIN)
    texts = {"prompt": ["2 + 2 = "], "chosen": ["4"], "rejected": ["5"], "confidence": [0.75]}
    log_preferences(Dataset.from_dict({**texts, **ids, "candidates": [["5"]]}), tokenizer, BOTH, MAIN)
    decoded = {"step": 3, "chosen": "chosen", "rejected": "rejected"}
    shown = {"step": 3, "prompt": "2 + 2 = ", "chosen": "4", "rejected": "5", "confidence": 0.75}
    assert trackers.wandb.tables == [("synthetic_preferences", [decoded]), ("synthetic_preferences", [shown])]


@pytest.mark.parametrize(("method", "count"), [("none", 0), ("spg", 1)])
def test_a_reward_trainer_shows_its_synthetic_preferences(tmp_path, trackers, method, count):
    trainer = rlp_trainer(tmp_path, method, max_steps=1)
    trainer.args.report_to = ["wandb", "trackio"]
    trainer.train()
    for tracker in trackers.all:
        assert [name for name, _ in tracker.tables] == ["synthetic_preferences"] * count
        assert all([row["chosen"] for row in rows] == ["red", "blue", "green"] for _, rows in tracker.tables)


def test_a_refinement_in_the_loop_shows_its_new_pairs(tmp_path, trackers):
    reward = refinable_reward()
    trainer = policy_trainer(tmp_path, reward, callbacks=[refinement(tmp_path, reward)], max_steps=3)
    trainer.args.report_to = ["wandb"]
    trainer.train()
    ((name, rows),) = trackers.wandb.tables
    assert name == "synthetic_preferences" and {row["step"] for row in rows} == {2}
    assert all(row["chosen"] != row["rejected"] and "confidence" in row for row in rows)


def test_ppo_shows_the_completions_that_it_prints(tmp_path, trackers):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(2, "chat"))
    trainer.args.report_to = ["wandb"]
    trainer.generate_completions()
    ((name, rows),) = trackers.wandb.tables
    assert name == "eval/completions" and [row["query"] for row in rows] == ["user: ab0:", "user: abab1:"]
    assert list(rows[0]) == ["step", "query", "model response", "score"]


@pytest.mark.parametrize("method", ["evaluate", "generate_completions"])
def test_ppo_starts_trackio_again_after_training(tmp_path, trackers, method):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(2))
    trackers.trackio.context_vars.current_run.set(None)
    callback = RecordedTrackioCallback(trackers.trackio)
    trainer.add_callback(callback)
    getattr(trainer, method)()
    assert callback.num_started == 1


def test_an_active_run_of_trackio_is_kept(trackers):
    callback = RecordedTrackioCallback(trackers.trackio)
    handler = SimpleNamespace(callbacks=[callback])
    trainer = SimpleNamespace(callback_handler=handler, args=BOTH, state=MAIN, model=None)
    start_trackio_run(trainer)
    assert callback.num_started == 0


@pytest.mark.parametrize(("error", "exit_code"), [(None, 0), (RuntimeError, 1), (KeyboardInterrupt, 1)])
@pytest.mark.parametrize("run", [None, "the user's"])
def test_a_stage_finishes_the_run_that_it_started_also_if_it_fails(trackers, run, error, exit_code):
    trackers.wandb.run = run
    trainer = SimpleNamespace(args=SimpleNamespace(report_to=["wandb"], run_name="mine"))
    with pytest.raises(error) if error else nullcontext(), stage_run(trainer, "policy"):
        trackers.wandb.run = run or "started by the trainer"
        assert trainer.args.run_name == "mine-policy"
        if error:
            raise error
    assert trainer.args.run_name == "mine" and trackers.wandb.run == run
    assert trackers.wandb.exit_codes == ([] if run else [exit_code])


def test_a_run_without_a_name_stays_without(trackers):
    trainer = SimpleNamespace(args=SimpleNamespace(report_to=[], run_name=None))
    with stage_run(trainer, "policy"):
        assert trainer.args.run_name is None
    assert trainer.args.run_name is None and trackers.wandb.exit_codes == []
