"""Training on the device in bf16: equal to TRL's, with heads in fp32, resumed, with checkpointing and compiled."""

import copy

import pytest
import torch

from tests.ppo_runs import ppo_trainer
from tests.reward_runs import get_logged, rlp_trainer, trl_trainer
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer


RESUMABLE = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}


def eager_reward_model(**options):
    """Without fused attention, whose backward pass on a GPU is not the same from run to run."""
    return tiny_reward_model(tiny_tokenizer(), attn_implementation="eager", **options)


def largest_difference(first: list[float], second: list[float]) -> float:
    assert len(first) == len(second) > 0
    return max(abs(mine - theirs) for mine, theirs in zip(first, second, strict=True))


def test_none_equals_trl_bit_for_bit(tmp_path, device, training, deterministic):
    ours = rlp_trainer(tmp_path / "ours", method="none", model=eager_reward_model(), **training)
    theirs = trl_trainer(tmp_path / "theirs", model=eager_reward_model(), **training)
    for trainer in (ours, theirs):
        trainer.train()
        assert trainer.model.device.type == device.type
    assert get_logged(ours, "loss") == get_logged(theirs, "loss")
    for (name, weight), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_heads_and_scores_are_in_fp32(tmp_path, device, training):
    trainer = rlp_trainer(tmp_path, model=tiny_reward_model(tiny_tokenizer()).to(torch.bfloat16), **training)
    trainer.train()
    heads = trainer.representation_term.heads_callback.heads
    assert {weight.dtype for weight in heads.parameters()} == {torch.float32}
    assert {weight.device.type for weight in heads.parameters()} == {device.type}
    assert all(torch.tensor(get_logged(trainer, "loss")).isfinite())


def test_a_reward_run_resumes_with_the_same_losses(tmp_path, training, deterministic, record_property):
    runs = [rlp_trainer(tmp_path, model=eager_reward_model(), **training, **RESUMABLE) for _ in range(2)]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    deviation = largest_difference(*(get_logged(run, "loss")[-2:] for run in runs))
    record_property("deviation", deviation)
    assert deviation < 1e-3


def test_a_ppo_run_resumes_with_the_same_rollouts(tmp_path, training, deterministic, record_property):
    settings = {**training, **RESUMABLE, "total_episodes": None}
    settings |= {"model": tiny_causal_lm(tiny_tokenizer(), attn_implementation="eager")}
    settings |= {"reward_model": eager_reward_model(seed=3)}
    runs = [ppo_trainer(tmp_path, **copy.deepcopy(settings)) for _ in range(2)]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    deviation = largest_difference(*(get_logged(run, "objective/kl")[-2:] for run in runs))
    record_property("deviation", deviation)
    assert deviation < 1e-2


@pytest.mark.parametrize("method", ["none", "uml"])
def test_gradient_checkpointing_does_not_change_the_losses(tmp_path, training, deterministic, method, record_property):
    losses = []
    for is_on in (True, False):
        settings = {**training, "method": method, "gradient_checkpointing": is_on}
        trainer = rlp_trainer(tmp_path, model=eager_reward_model(), **settings)
        trainer.train()
        losses.append(get_logged(trainer, "loss"))
    deviation = largest_difference(*losses)
    record_property("deviation", deviation)
    assert deviation < 2e-2


def test_a_compiled_model_trains(tmp_path, device, training, record_property):
    """
    On the CPU, the `eager` backend compiles nothing, but takes the same way through the trainer. Only one step,
    because a batch of another length may be compiled again, which takes long on a GPU.
    """
    backend = "eager" if device.type == "cpu" else "inductor"
    compiled = rlp_trainer(tmp_path, torch_compile=True, torch_compile_backend=backend, max_steps=1, **training)
    plain = rlp_trainer(tmp_path, max_steps=1, **training)
    for trainer in (compiled, plain):
        trainer.train()
    deviation = largest_difference(get_logged(compiled, "loss"), get_logged(plain, "loss"))
    record_property("deviation", deviation)
    assert deviation < 5e-2
