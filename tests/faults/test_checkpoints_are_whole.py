"""Stops, saves and checkpoints lose nothing: a checkpoint is whole, and a run resumes from it as if it had gone on."""

import logging
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from tests.ppo_runs import has_changed, logged, ppo_trainer, prompts, weights
from tests.reward_runs import SETTINGS, get_logged, policy_samples, preferences, rlp_trainer
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLPPPOTrainer
from trl_rlp.stages.policy import POLICY_TRAINERS, train_policy
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.run_folder import CHECKPOINTS
from trl_rlp.trainer.checkpoints import last_checkpoint, train_to_end
from trl_rlp.trainer.reward.heads_callback import HEADS_FILE


class Request(TrainerCallback):
    """Sets fields of the control at one event and step, as a time limit does."""

    def __init__(self, event: str, step: int, *fields: str):
        self.step, self.fields = step, fields or ("should_save", "should_training_stop")
        setattr(self, event, self.request)

    def request(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for field in self.fields:
                setattr(control, field, True)


class Terminate(TrainerCallback):
    """Sends SIGTERM to this process after a step, and waits until `enable_jit_checkpoint` has noticed it."""

    def __init__(self, step: int):
        self.step = step

    def watch(self, trainer: Trainer) -> Trainer:
        callbacks = trainer.callback_handler.callbacks
        (self.manager,) = (entry.jit_manager for entry in callbacks if isinstance(entry, JITCheckpointCallback))
        self.manager.kill_wait = 0
        trainer.add_callback(self)
        return trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 60
            while not self.manager.is_checkpoint_requested and time.monotonic() < deadline:
                time.sleep(0.01)


@pytest.fixture(autouse=True)
def handler_of_sigterm():
    """Keeps a SIGTERM that comes too late from ending the tests. A run must restore the handler that it found."""

    def ignore(number, frame):
        pass

    previous = signal.signal(signal.SIGTERM, ignore)
    yield ignore
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def warnings_of_checkpoints(caplog, monkeypatch):
    for name in ("trl_rlp.trainer.checkpoints", "trl_rlp.trainer.ppo.ppo_checkpoints"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


def infinite_reward(rollout: int):
    """Builds a reward function that is infinite in one rollout, so that the steps on it are skipped."""
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [float("inf") if len(calls) == rollout else 1.0] * len(completions)

    return reward


def get_checkpoints(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


# PPO: three rollouts of two steps, each with two micro-batches


@pytest.fixture(scope="module")
def uninterrupted_ppo(tmp_path_factory):
    trainer = ppo_trainer(tmp_path_factory.mktemp("uninterrupted"), save_strategy="steps", save_steps=1)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "event, step, stop",
    [
        ("on_step_begin", 2, 4),
        ("on_substep_end", 2, 4),
        ("on_pre_optimizer_step", 2, 4),
        ("on_step_end", 3, 4),
    ],
)
def test_a_callback_that_saves_and_stops_leaves_a_whole_checkpoint(tmp_path, uninterrupted_ppo, event, step, stop):
    """
    A user's time limit saves and stops. Within a rollout, the run used to stop at once, without a checkpoint. Now both
    wait for the end of the rollout, and a run that resumes ends as if it had not been stopped.
    """
    trainer = ppo_trainer(tmp_path, callbacks=[Request(event, step)])
    trainer.train()
    assert trainer.state.global_step == stop and get_checkpoints(tmp_path) == [f"checkpoint-{stop}"]
    resumed = ppo_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed)[:-1] == logged(uninterrupted_ppo)[:-1]
    assert not has_changed(resumed.model, weights(uninterrupted_ppo.model))
    assert not has_changed(resumed.value_model, weights(uninterrupted_ppo.value_model))


def test_what_a_callback_requests_after_a_log_within_a_rollout_waits(tmp_path, uninterrupted_ppo):
    """A user logs the first step and stops at a threshold in `on_log`. The step is within the first rollout."""
    trainer = ppo_trainer(tmp_path, logging_first_step=True, callbacks=[Request("on_log", 1)])
    trainer.train()
    assert trainer.state.global_step == 2 and get_checkpoints(tmp_path) == ["checkpoint-2"]
    resumed = ppo_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert not has_changed(resumed.model, weights(uninterrupted_ppo.model))


@pytest.mark.parametrize("event", ["on_substep_end", "on_step_end"])
def test_a_stop_waits_for_a_checkpoint_that_was_requested_earlier_in_the_rollout(tmp_path, event):
    """Two callbacks: one saves at step 2 of a rollout, the other stops later in it. The save used to be lost."""
    requests = [Request("on_step_end", 1, "should_save"), Request(event, 1, "should_training_stop")]
    trainer = ppo_trainer(tmp_path, callbacks=requests)
    trainer.train()
    assert trainer.state.global_step == 2 and get_checkpoints(tmp_path) == ["checkpoint-2"]


def test_the_end_of_an_epoch_that_is_requested_within_a_rollout_waits(tmp_path):
    """An epoch that ends within a rollout would put the rollouts out of step with the prompts."""
    ends = []

    class Recorder(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            ends.append(state.global_step)

    request = Request("on_step_end", 1, "should_epoch_stop")
    ppo_trainer(tmp_path, callbacks=[request, Recorder()]).train()
    assert ends[0] == 2


def test_a_stop_after_a_skipped_step_waits_for_its_checkpoint(tmp_path):
    """
    The second rollout is not finite, so no checkpoint is written at its end. A run that saves and stops there used to
    end without one. Now it stops with a checkpoint after the third rollout.
    """
    settings = {"total_episodes": 16, "callbacks": [Request("on_step_end", 4)]}
    trainer = ppo_trainer(tmp_path, reward_funcs=[infinite_reward(rollout=2)], **settings)
    trainer.train()
    assert trainer.state.global_step == 6 and get_checkpoints(tmp_path) == ["checkpoint-6"]


def test_a_checkpoint_that_cannot_be_written_at_the_end_of_a_run_is_named(tmp_path, warnings_of_checkpoints):
    """The last rollout is not finite, so the run ends without the checkpoint of its last step. It was silent."""
    settings = {"save_strategy": "steps", "save_steps": 1}
    trainer = ppo_trainer(tmp_path, reward_funcs=[infinite_reward(rollout=3)], **settings)
    trainer.train()
    assert trainer.state.global_step == 6
    assert get_checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    message = f"ended at step 6 without the checkpoint that was requested.* {tmp_path / 'checkpoint-4'}"
    assert warnings_of_checkpoints.text.count("without the checkpoint that was requested") == 1
    assert re.search(message, warnings_of_checkpoints.text)


def test_a_checkpoint_that_was_not_the_best_is_written_when_the_run_stops(tmp_path):
    """
    A user's time limit saves and stops with `save_strategy="best"`. The evaluation at the same step overrides the
    request if the metric is not better, so the run used to stop without a checkpoint.
    """
    settings = {
        "save_strategy": "best",
        "metric_for_best_model": "eval_loss",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset": prompts(2),
    }
    trainer = ppo_trainer(tmp_path, callbacks=[Request("on_step_end", 3)], **settings)
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: evaluate(*args, **kwargs) | {"eval_loss": 1.0}  # the first is the best
    trainer.train()
    assert trainer.state.global_step == 4 and get_checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_sigterm_with_jit_checkpoints_leaves_a_whole_checkpoint(tmp_path, uninterrupted_ppo, handler_of_sigterm):
    """
    A cluster ends a run with `enable_jit_checkpoint`. It used to leave an empty folder. Now the run finishes its
    rollout, writes a checkpoint and stops.
    """
    trainer = Terminate(3).watch(ppo_trainer(tmp_path, enable_jit_checkpoint=True))
    trainer.train()
    assert trainer.state.global_step == 4 and get_checkpoints(tmp_path) == ["checkpoint-4"]
    assert signal.getsignal(signal.SIGTERM) is handler_of_sigterm
    resumed = ppo_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed)[:-1] == logged(uninterrupted_ppo)[:-1]
    assert not has_changed(resumed.model, weights(uninterrupted_ppo.model))


def test_jit_checkpoints_do_not_belong_to_the_settings_of_an_rlp_run(tmp_path):
    """A user turns `enable_jit_checkpoint` on for the second run in a folder. It used to be refused as another run."""
    settings = {
        "trainer_class": RLPPPOTrainer,
        "config_class": RLPPPOConfig,
        "rlp_method": "uml",
        "preference_dataset": preferences(),
    }
    ppo_trainer(tmp_path, **settings)
    ppo_trainer(tmp_path, enable_jit_checkpoint=True, **settings)


# The reward trainer: its heads


def test_sigterm_with_jit_checkpoints_keeps_the_heads(tmp_path):
    """A cluster ends a refinement with `enable_jit_checkpoint`. Its checkpoint used to lack the heads."""
    uninterrupted = rlp_trainer(tmp_path / "uninterrupted")
    uninterrupted.train()
    terminate = Terminate(2)
    terminate.watch(rlp_trainer(tmp_path / "run", enable_jit_checkpoint=True)).train()
    resumed = rlp_trainer(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for key in ("loss", "mi", "representation_loss"):
        assert get_logged(resumed, key)[-1] == get_logged(uninterrupted, key)[-1], key


def test_heads_are_in_the_folder_that_is_pushed(tmp_path, monkeypatch):
    """A user pushes checkpoints to the Hub (`hub_strategy="checkpoint"`). The heads used to be missing there."""
    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append(os.listdir(folder)))
    trainer = rlp_trainer(tmp_path, save_strategy="steps", save_steps=2, hub_strategy="checkpoint")
    trainer.args.push_to_hub = True
    trainer.train()
    assert len(pushed) == 2 and all(HEADS_FILE in files for files in pushed)


def test_a_run_that_is_killed_while_it_saves_resumes_from_the_checkpoint_before(
    tmp_path, monkeypatch, warnings_of_checkpoints
):
    """
    A run is killed while it writes the heads. The checkpoint used to be complete by then, so no run could resume from
    it. Now it is incomplete, and a warning names it.
    """
    settings = {"save_strategy": "steps", "save_steps": 1}
    uninterrupted = rlp_trainer(tmp_path / "uninterrupted", **settings)
    uninterrupted.train()
    trainer = rlp_trainer(tmp_path / "run", **settings)
    save_file = torch.save

    def interrupt(contents, path, *args, **kwargs):
        if Path(path).name == HEADS_FILE and trainer.state.global_step == 3:
            raise KeyboardInterrupt
        save_file(contents, path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", interrupt)
        trainer.train()
    resumed = rlp_trainer(tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert get_logged(resumed, "loss") == get_logged(uninterrupted, "loss")
    assert f"'{tmp_path / 'run' / 'checkpoint-3'}' is incomplete: it has no trainer_state.json" in (
        warnings_of_checkpoints.text
    )


def test_an_old_checkpoint_in_the_same_folder_is_incomplete_until_it_is_replaced(tmp_path, monkeypatch):
    """The second run in a folder is killed in a checkpoint of the first run. It used to look complete."""
    settings = {"save_strategy": "steps", "save_steps": 2}
    rlp_trainer(tmp_path, **settings).train()
    second = rlp_trainer(tmp_path, seed=7, **settings)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(second, "save_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        second.train()
    assert not (tmp_path / "checkpoint-2" / "trainer_state.json").exists()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


# All trainers

LORA = LoraConfig(r=2, target_modules=["q_proj"])
TRAINERS = {
    "uml": lambda folder, **settings: rlp_trainer(folder, **settings),
    "ppo": lambda folder, **settings: ppo_trainer(folder, **settings),
    "ppo with adapters": lambda folder, **settings: ppo_trainer(
        folder, peft_config=LORA, value_peft_config=LORA, **settings
    ),
}


@pytest.mark.parametrize("build", TRAINERS.values(), ids=TRAINERS)
def test_nothing_is_written_to_a_checkpoint_after_its_state(tmp_path, monkeypatch, build):
    """The state marks a checkpoint as complete, so all other files must be there first."""
    before, save_state = [], TrainerState.save_to_json

    def list_and_save(self, path):
        before.append({file.relative_to(tmp_path).as_posix() for file in Path(path).parent.rglob("*")})
        save_state(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", list_and_save)
    build(tmp_path, save_strategy="steps", save_steps=2).train()
    checkpoints = sorted(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == len(before) >= 2
    for checkpoint, files in zip(checkpoints, before, strict=True):
        after = {file.relative_to(tmp_path).as_posix() for file in checkpoint.rglob("*")}
        assert after - files == {f"{checkpoint.name}/trainer_state.json"}


@pytest.mark.parametrize("build", [TRAINERS["uml"], TRAINERS["ppo"]], ids=["uml", "ppo"])
def test_a_stage_does_not_resume_from_checkpoints_without_optimizers(tmp_path, build):
    """
    A stage with `save_only_model` is interrupted. It used to continue with a new optimizer, or never again. Now it
    starts from the beginning, with the result of an uninterrupted stage.
    """
    settings = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    expected = train_to_end(build(tmp_path / "uninterrupted" / CHECKPOINTS, **settings), tmp_path / "uninterrupted")
    trainer = build(tmp_path / "run" / CHECKPOINTS, **settings)

    class Interrupt(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        train_to_end(trainer, tmp_path / "run")
    metrics = train_to_end(build(tmp_path / "run" / CHECKPOINTS, **settings), tmp_path / "run")
    assert metrics["loss"] == expected["loss"]


# Stages


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a policy and a reward model with random weights."""
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("models")
    policy = save(tiny_causal_lm(tokenizer), tokenizer, folder / "policy")
    return policy, save(tiny_reward_model(tokenizer, seed=3), tokenizer, folder / "reward")


SAVING = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant", "learning_rate": 1e-2}
POLICY = {
    "per_device_train_batch_size": 2,
    "max_completion_length": 4,
    "num_generations": 2,
    "max_steps": 1,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
"""The last step is within an epoch of four prompts."""


def run_policy_stage(trainer_name, folder, models):
    args = {**POLICY, **SAVING}
    return train_policy(folder, *models, prompts(4), args, trainer_name), load_policy(folder)[0]


def run_reward_stage(method, folder, models, **settings):
    """The last step is step 3 of an epoch of four steps."""
    args = {**SETTINGS, **SAVING, "method": method, "max_steps": 3, **settings}
    views = {"policy_samples": policy_samples()} if method == "uml" else {}
    return train_reward_model(folder, models[0], preferences(), args, **views), load_reward_model(folder)[0]


STAGES = {
    **{name: lambda folder, models, name=name: run_policy_stage(name, folder, models) for name in POLICY_TRAINERS},
    **{name: lambda folder, models, name=name: run_reward_stage(name, folder, models) for name in ("none", "uml")},
    "half an epoch": lambda folder, models: run_reward_stage(
        "none", folder, models, max_steps=-1, num_train_epochs=1.5
    ),
}


@pytest.mark.parametrize("run", STAGES.values(), ids=STAGES)
def test_a_finished_stage_takes_no_further_step(tmp_path, models, monkeypatch, run):
    """
    A run is killed after the last checkpoint of a stage, before the stage's folder gets its name. The second call used
    to take one step more, if the stage ended within an epoch. Now it loads the weights, and the metrics of the log.
    """
    first, expected = run(tmp_path, models)
    # A step would fail.
    monkeypatch.setattr(Trainer, "training_step", None)
    second, model = run(tmp_path, models)
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in model.state_dict().items())
    summary = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}
    assert second == {name: value for name, value in first.items() if name not in summary}


def test_a_finished_stage_still_loads_its_best_model(tmp_path, monkeypatch):
    """With `load_best_model_at_end`, the model of the stage is the best one, also if the stage is called again."""
    settings = {
        **SAVING,
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "eval_dataset": preferences(2),
        "metric_for_best_model": "eval_loss",
    }
    losses = {1: 3.0, 2: 1.0, 3: 2.0}

    def build():
        trainer = rlp_trainer(tmp_path / CHECKPOINTS, method="none", **settings)
        trainer.evaluate = lambda *args, **kwargs: {"eval_loss": losses[trainer.state.global_step]}
        return trainer

    train_to_end(build(), tmp_path)
    expected = load_reward_model(tmp_path)[0].state_dict()
    best = load_reward_model(tmp_path / CHECKPOINTS / "checkpoint-2")[0].state_dict()
    train_to_end(build(), tmp_path)
    model = load_reward_model(tmp_path)[0].state_dict()
    for name, weight in model.items():
        assert torch.equal(weight, expected[name]) and torch.equal(weight, best[name])


def test_a_finished_run_on_a_stream_takes_no_further_step(tmp_path):
    """A user calls `train(resume_from_checkpoint=True)` again after the last step of a reward model."""
    settings = {**SAVING, "max_steps": 3, "data": preferences().to_iterable_dataset(), "method": "none"}
    finished = rlp_trainer(tmp_path, **settings)
    finished.train()
    resumed = rlp_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.state.global_step, resumed.state.max_steps) == (3, 3)
    assert not has_changed(resumed.model, weights(finished.model))


@pytest.mark.parametrize("build", [TRAINERS["uml"], TRAINERS["ppo"]], ids=["uml", "ppo"])
def test_a_stage_that_sigterm_stops_is_not_finished(tmp_path, build):
    """
    A cluster ends a run with `enable_jit_checkpoint` within a stage. The stage used to be finished with a model that
    was half trained. Now the run ends with an error, and the next run resumes the stage.
    """
    expected = train_to_end(build(tmp_path / "uninterrupted" / CHECKPOINTS), tmp_path / "uninterrupted")
    trainer = Terminate(1).watch(build(tmp_path / "run" / CHECKPOINTS, enable_jit_checkpoint=True))
    with pytest.raises(
        RuntimeError, match=r"stopped at step 2 of [46], and `enable_jit_checkpoint` is set.*Start the"
    ):
        train_to_end(trainer, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    metrics = train_to_end(build(tmp_path / "run" / CHECKPOINTS, enable_jit_checkpoint=True), tmp_path / "run")
    assert metrics["loss"] == expected["loss"]


def test_a_stage_that_a_callback_stops_says_so(tmp_path, warnings_of_checkpoints):
    """An early stop finishes a stage, but the user should know that the model is not trained to the end."""
    trainer = rlp_trainer(tmp_path / CHECKPOINTS, callbacks=[Request("on_step_end", 2)])
    train_to_end(trainer, tmp_path)
    assert "Training stopped at step 2 of 4. The stage is finished with this model." in warnings_of_checkpoints.text


@pytest.mark.parametrize("build", [ppo_trainer, rlp_trainer], ids=["PPO", "reward"])
def test_random_states_of_all_processes_are_in_a_checkpoint_before_it_counts_as_complete(tmp_path, monkeypatch, build):
    """The other processes write theirs at their own pace, and the main process marks the checkpoint as complete."""
    trainer, seen = build(tmp_path, save_strategy="steps", save_steps=2, max_steps=4), []
    wait = trainer.accelerator.wait_for_everyone

    def record():
        names = {path.name for path in tmp_path.glob("checkpoint-*/*")}
        seen.append(("rng_state.pth" in names, "trainer_state.json" in names))
        wait()

    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", record)
    trainer.train()
    assert (True, False) in seen
