"""The heads in a run: they are trained, saved and resumed with the model."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from tests.reward_runs import get_logged, preferences, rlp_trainer
from trl_rlp.trainer.reward.heads_callback import HEADS_FILE


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def get_heads(trainer) -> dict[str, torch.Tensor]:
    return trainer.representation_term.heads_callback.heads.state_dict()


@pytest.mark.parametrize("stop", [2, 3], ids=["within an epoch", "between epochs"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop):
    """Six pairs in batches of two are three steps per epoch."""
    settings = {"save_strategy": "steps", "save_steps": stop, "max_steps": 6, "kl_ramp_steps": 6}
    uninterrupted = rlp_trainer(tmp_path / "uninterrupted", data=preferences(6), **settings)
    uninterrupted.train()
    stopped = rlp_trainer(tmp_path / "stopped", data=preferences(6), callbacks=[StopAt(stop)], **settings)
    stopped.train()
    assert stopped.state.global_step == stop
    resumed = rlp_trainer(tmp_path / "stopped", data=preferences(6), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{stop}"))
    for key in ("loss", "preference_loss", "representation_loss", "mi", "kl_12", "mean_spread", "grad_norm"):
        assert len(get_logged(uninterrupted, key)) == 6
        assert get_logged(resumed, key) == get_logged(uninterrupted, key), key
    for name, value in get_heads(uninterrupted).items():
        assert torch.equal(value, get_heads(resumed)[name]), name
    for name, value in uninterrupted.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_true_resumes_from_the_last_checkpoint(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = rlp_trainer(tmp_path, callbacks=[StopAt(2)], **settings)
    first.train()
    second = rlp_trainer(tmp_path, **settings)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    assert get_logged(second, "mi")[:2] == get_logged(first, "mi")


def test_a_step_without_a_representation_loss_passes_a_gradient_scaler(tmp_path):
    """fp16 scales gradients. The views of all micro-batches of a step may come from one prompt each."""
    callback = rlp_trainer(tmp_path).representation_term.heads_callback
    callback.accelerator = SimpleNamespace(num_processes=1, scaler=torch.amp.GradScaler("cpu"))
    before = {name: weight.clone() for name, weight in callback.heads.state_dict().items()}
    arguments = SimpleNamespace(max_grad_norm=1.0), None, None
    callback.on_pre_optimizer_step(*arguments)
    assert all(weight.equal(before[name]) for name, weight in callback.heads.state_dict().items())
    loss = callback.heads(torch.randn(4, 16), torch.randn(4, 16), torch.arange(4))["loss"]
    callback.accelerator.scaler.scale(loss).backward()
    callback.on_pre_optimizer_step(*arguments)
    assert not any(weight.equal(before[name]) for name, weight in callback.heads.named_parameters())


def test_a_checkpoint_contains_the_heads_and_the_model_does_not(tmp_path):
    trainer = rlp_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    contents = torch.load(tmp_path / "checkpoint-2" / HEADS_FILE, weights_only=True)
    assert set(contents) == {"settings", "heads", "optimizer"}
    for name, value in get_heads(trainer).items():
        assert torch.equal(contents["heads"][name], value)
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / HEADS_FILE).exists()
    assert not any("critic" in name for name in trainer.model.state_dict())


def test_save_only_model_does_not_save_the_heads(tmp_path):
    rlp_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-2" / HEADS_FILE).exists()


def test_a_checkpoint_without_heads_is_an_error(tmp_path):
    rlp_trainer(tmp_path, method="none", save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(
        ValueError, match="`resume_from_checkpoint`=.* contains no representation_heads.pt.*`save_only_model`.*pass"
    ):
        rlp_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_heads_of_another_loss_are_an_error(tmp_path):
    rlp_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(ValueError, match="was written with .*'mib'.*this run has .*'mvi'"):
        rlp_trainer(tmp_path, representation_loss="mvi").train(resume_from_checkpoint=True)
