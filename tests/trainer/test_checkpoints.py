import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.ppo_runs import ppo_trainer
from tests.reward_runs import rlp_trainer
from trl_rlp.storage.run_folder import CHECKPOINTS
from trl_rlp.trainer.checkpoints import (
    INCOMPLETE,
    TRAINER_STATE,
    last_checkpoint,
    load_state,
    no_extra_step,
    open_checkpoint,
    resolve_checkpoint,
    train_to_end,
)


def make_checkpoint(folder, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "rng_state.pth").touch()
    (checkpoint / TRAINER_STATE).write_text(f'{{"global_step": {step}}}')
    return checkpoint


def test_the_last_checkpoint_is_the_complete_one_with_most_steps(tmp_path):
    for step in (9, 10):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "checkpoint-9") is None
    assert last_checkpoint(tmp_path / "missing") is None


def cut_state(checkpoint):
    (checkpoint / TRAINER_STATE).write_text('{"global_step": 1')


def begin_replacement(checkpoint):
    (checkpoint / INCOMPLETE).touch()
    os.utime(checkpoint / TRAINER_STATE, (0, 0))


INCOMPLETE_CHECKPOINTS = {
    "has no trainer_state.json": lambda checkpoint: (checkpoint / TRAINER_STATE).unlink(),
    "has a trainer_state.json that cannot be read": cut_state,
    "was written with `save_only_model`": lambda checkpoint: (checkpoint / "rng_state.pth").unlink(),
    "was being replaced when the run ended": begin_replacement,
}


@pytest.mark.parametrize("reason, damage", INCOMPLETE_CHECKPOINTS.items(), ids=INCOMPLETE_CHECKPOINTS)
def test_a_warning_names_a_newer_checkpoint_that_is_incomplete(tmp_path, monkeypatch, caplog, reason, damage):
    monkeypatch.setattr("trl_rlp.trainer.checkpoints.logger.propagate", True)
    complete, incomplete = make_checkpoint(tmp_path, 2), make_checkpoint(tmp_path, 3)
    assert last_checkpoint(tmp_path) == str(incomplete) and caplog.text == ""
    damage(incomplete)
    assert last_checkpoint(tmp_path) == str(complete)
    assert f"'{incomplete}' is incomplete: it {reason}. The last complete checkpoint is {complete}." in caplog.text
    damage(complete)
    assert last_checkpoint(tmp_path) is None
    assert "The last complete checkpoint is none." in caplog.text


def test_a_checkpoint_is_complete_if_a_later_run_has_replaced_it(tmp_path):
    """A run was killed in it, and left the file of `enable_jit_checkpoint`. The next run has written it again."""
    checkpoint = make_checkpoint(tmp_path, 2)
    (checkpoint / INCOMPLETE).touch()
    os.utime(checkpoint / INCOMPLETE, (0, 0))
    assert last_checkpoint(tmp_path) == str(checkpoint)


def test_a_checkpoint_that_is_opened_is_incomplete(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 2)
    args, state = SimpleNamespace(output_dir=str(tmp_path), should_save=False), SimpleNamespace(global_step=2)
    assert open_checkpoint(args, state) == checkpoint and last_checkpoint(tmp_path) == str(checkpoint)
    args.should_save = True
    assert open_checkpoint(args, state) == checkpoint and last_checkpoint(tmp_path) is None
    state.global_step = 3
    assert open_checkpoint(args, state).is_dir()


@pytest.mark.parametrize(
    "resume_from_checkpoint, expected",
    [
        (None, None),
        (False, None),
        ("false", None),
        (True, "checkpoint-4"),
        ("True", "checkpoint-4"),
    ],
)
def test_a_run_resumes_from_the_requested_checkpoint(tmp_path, resume_from_checkpoint, expected):
    make_checkpoint(tmp_path, 4)
    checkpoint = resolve_checkpoint(resume_from_checkpoint, str(tmp_path))
    assert checkpoint == (expected and str(tmp_path / expected))


def test_a_folder_is_the_requested_checkpoint_if_it_has_a_state(tmp_path):
    first = str(make_checkpoint(tmp_path, 3))
    make_checkpoint(tmp_path, 4)
    assert resolve_checkpoint(first, str(tmp_path)) == first
    assert load_state(first).global_step == 3
    with pytest.raises(ValueError, match="`resume_from_checkpoint`='other' has no readable trainer_state.json.*Pass "):
        resolve_checkpoint("other", str(tmp_path))


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match="`resume_from_checkpoint` is True, but '.*' contains no complete checkpoint. Remove it"
    ):
        resolve_checkpoint(True, str(tmp_path))


def test_a_stopped_stage_resumes(tmp_path):
    """The second call finds the checkpoint of the last rollout, so it does not train."""
    settings = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 8, "run_name": "mine"}
    metrics = train_to_end(ppo_trainer(tmp_path / CHECKPOINTS, **settings), tmp_path)
    assert metrics["episode"] == 8 and (tmp_path / "model.safetensors").is_file()
    state = (tmp_path / "trainer_state.json").read_text()
    second = ppo_trainer(tmp_path / CHECKPOINTS, **settings)
    second.compute_loss = None
    train, names = second.train, []

    def record_name(**arguments):
        names.append(second.args.run_name)
        return train(**arguments)

    second.train = record_name
    assert train_to_end(second, tmp_path)["objective/kl"] == metrics["objective/kl"]
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert log == [entry for entry in json.loads(state)["log_history"] if "train_runtime" not in entry]
    assert names == [f"mine-{tmp_path.name}"]


@pytest.mark.parametrize("num_steps, num_epochs", [(3, 2), (4, 2), (6, 1), (7, 1), (8, 2)])
def test_a_finished_run_has_no_further_epoch(tmp_path, num_steps, num_epochs):
    """Six steps are two epochs of four. With six steps taken, the loop would start with epoch 1, so it ends there."""
    trainer = rlp_trainer(tmp_path, method="none", max_steps=6)
    checkpoint = make_checkpoint(tmp_path, num_steps)
    expected = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert expected[:2] == (2, 4)
    with no_extra_step(trainer, str(checkpoint)):
        plan = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert plan == (num_epochs, *expected[1:])
    assert trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader()) == expected


@pytest.mark.parametrize("find", ["resolve_checkpoint", "train_to_end"])
def test_processes_that_see_different_checkpoints_are_refused(tmp_path, monkeypatch, find):
    """A second machine with a disk of its own sees no checkpoint, and would begin while the first one resumes."""
    make_checkpoint(tmp_path, 2)
    monkeypatch.setattr("trl_rlp.trainer.checkpoints.share_work", lambda items, work: [*work([0]), None])
    with pytest.raises(ValueError, match=r"The processes see different checkpoints in .*checkpoint-2', None\]. Use"):
        if find == "resolve_checkpoint":
            resolve_checkpoint(True, str(tmp_path))
        else:
            train_to_end(SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path))), tmp_path / "final")
