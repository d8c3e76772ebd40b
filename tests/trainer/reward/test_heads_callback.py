"""The heads in a run: stepped, saved and resumed beside the model."""

import pytest
import torch
from transformers import TrainerCallback

from tests.reward_runs import logged, preferences, rlp_trainer
from trl_rlp.trainer.reward.heads_callback import HEADS_FILE


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def heads_of(trainer) -> dict[str, torch.Tensor]:
    return trainer.representation_term.heads_callback.heads.state_dict()


@pytest.mark.parametrize("stop", [2, 3], ids=["amid an epoch", "between epochs"])
def test_a_resumed_run_equals_a_straight_one(tmp_path, stop):
    """Six pairs by two are three steps an epoch."""
    settings = {"save_strategy": "steps", "save_steps": stop, "max_steps": 6, "kl_ramp_steps": 6}
    straight = rlp_trainer(tmp_path / "straight", data=preferences(6), **settings)
    straight.train()
    stopped = rlp_trainer(tmp_path / "stopped", data=preferences(6), callbacks=[StopAt(stop)], **settings)
    stopped.train()
    assert stopped.state.global_step == stop
    resumed = rlp_trainer(tmp_path / "stopped", data=preferences(6), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{stop}"))
    for key in ("loss", "preference_loss", "representation_loss", "mi", "kl_12", "mean_spread", "grad_norm"):
        assert len(logged(straight, key)) == 6
        assert logged(resumed, key) == logged(straight, key), key
    for name, value in heads_of(straight).items():
        assert torch.equal(value, heads_of(resumed)[name]), name
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_last_checkpoint_is_found(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = rlp_trainer(tmp_path, callbacks=[StopAt(2)], **settings)
    first.train()
    second = rlp_trainer(tmp_path, **settings)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    assert logged(second, "mi")[:2] == logged(first, "mi")


def test_a_checkpoint_holds_the_heads_and_the_model_does_not(tmp_path):
    trainer = rlp_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    contents = torch.load(tmp_path / "checkpoint-2" / HEADS_FILE, weights_only=True)
    assert set(contents) == {"settings", "heads", "optimizer"}
    for name, value in heads_of(trainer).items():
        assert torch.equal(contents["heads"][name], value)
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / HEADS_FILE).exists()
    assert not any("critic" in name for name in trainer.model.state_dict())


def test_saving_the_model_only_leaves_the_heads_out(tmp_path):
    rlp_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-2" / HEADS_FILE).exists()


def test_a_checkpoint_without_heads_is_refused(tmp_path):
    rlp_trainer(tmp_path, method="none", save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(ValueError, match="`resume_from_checkpoint`=.* holds no representation_heads.pt.*Pass the"):
        rlp_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_heads_of_another_loss_are_refused(tmp_path):
    rlp_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(ValueError, match="was written with .*'mib'.*this run has .*'mvi'"):
        rlp_trainer(tmp_path, representation_loss="mvi").train(resume_from_checkpoint=True)
