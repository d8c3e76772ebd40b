"""Run on two processes: PPO and UML under FSDP2 and under DDP give the same numbers."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import FSDPModule, StateDictType
from torch.distributed.tensor import DTensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.ppo_runs import logged, ppo_trainer, prompts
from tests.reward_runs import get_logged, policy_samples, preferences, rlp_trainer
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.trainer.two_process_ppo import SETTINGS, replay
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLPPPOTrainer
from trl_rlp.storage.artifacts import load_policy, save_model, save_trained_model
from trl_rlp.storage.processes import leave_process_group
from trl_rlp.trainer.ppo import ppo_checkpoints
from trl_rlp.trainer.ppo import ppo_trainer as ppo_trainer_module
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer
from trl_rlp.trainer.reward.representation_term import RepresentationTerm


FSDP2 = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@contextmanager
def fsdp():
    """
    Turns on FSDP2 as `accelerate launch` does. accelerate has a list of device types for FSDP without the CPU, so the
    processes pretend to be of another type.
    """
    create = AcceleratorState.__init__

    def create_for_fsdp(self, *args, **kwargs):
        state = PartialState(cpu=True)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_XPU
        create(self, *args, **kwargs)

    AcceleratorState.__init__ = create_for_fsdp
    os.environ.update({"ACCELERATE_USE_FSDP": "true", **FSDP2})
    try:
        yield
    finally:
        AcceleratorState.__init__ = create
        for name in ("ACCELERATE_USE_FSDP", *FSDP2):
            os.environ.pop(name, None)


def untied_trainer(folder: Path, processes: int, **settings) -> PPOTrainer:
    """Policy and critic have equally many parameters, because the LM head is not tied to the embedding."""
    model = tiny_causal_lm(tiny_tokenizer(), tie_word_embeddings=False)
    settings = {**SETTINGS, "gradient_accumulation_steps": 2, "optim": "adamw_torch", **settings}
    settings["per_device_train_batch_size"] = 2 // processes
    trainer = ppo_trainer(folder, prompts(12), model=model, **settings)
    replay(trainer)
    return trainer


def full_weights(*models: nn.Module) -> list[torch.Tensor]:
    """Copies all weights. A collective operation, if they are sharded."""
    parameters = [parameter.detach() for model in models for parameter in model.parameters()]
    return [p.full_tensor().clone() if isinstance(p, DTensor) else p.clone() for p in parameters]


def assert_sharded(model: nn.Module) -> None:
    layers = [module for module in model.modules() if isinstance(module, LlamaDecoderLayer)]
    assert len(layers) == 2 and all(isinstance(layer, FSDPModule) for layer in layers)
    for module in filter(lambda module: isinstance(module, FSDPModule), model.modules()):
        module.reshard()  # what is read first and last stays whole after a forward pass
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def train_ppo(folder: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    reference = tiny_causal_lm(tiny_tokenizer(), tie_word_embeddings=False)
    trainer = untied_trainer(folder / "ppo", 2, ref_model=reference, standardize_rewards=True, **settings)
    trainer.train()
    for model in (trainer.model, trainer.ref_model, trainer.value_model):
        assert_sharded(model)
    assert all(p.requires_grad and not isinstance(p, DTensor) for p in reference.parameters())
    weights = full_weights(trainer.policy_model, trainer.value_model)
    trainer.accelerator.state.fsdp_plugin.state_dict_type = StateDictType.SHARDED_STATE_DICT  # accelerate's default
    save_trained_model(trainer, folder / "policy")
    trainer.accelerator.state.fsdp_plugin.state_dict_type = StateDictType.FULL_STATE_DICT
    if trainer.accelerator.is_main_process:
        torch.save({"log": logged(trainer), "weights": weights}, folder / "two.pt")
        saved = list(load_policy(folder / "policy")[0].parameters())
        assert all(map(torch.equal, saved, weights[: len(saved)]))
    resumed = untied_trainer(folder / "ppo", 2, ref_model=reference, standardize_rewards=True, **settings)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not PartialState().is_main_process:  # it gets its part of the critic from the main process
            monkeypatch.setattr(ppo_checkpoints, "_read_weights", lambda *arguments: 1 / 0)
        resumed.train(resume_from_checkpoint=str(folder / "ppo/checkpoint-4"))
    assert logged(resumed)[:-1] == logged(trainer)[:-1]
    assert all(map(torch.equal, full_weights(resumed.policy_model, resumed.value_model), weights))


def train_with_nan(folder: Path) -> None:
    """The loss is NaN on process 1 in the second step. Without a common decision, process 0 would wait forever."""
    trainer, compute = untied_trainer(folder, 2, total_episodes=4), ppo_trainer_module.ppo_loss

    def compute_broken(*args):
        loss, metrics = compute(*args)
        is_broken = trainer.state.global_step == 1 and trainer.accelerator.process_index == 1
        return loss * (torch.nan if is_broken else 1.0), metrics

    ppo_trainer_module.ppo_loss = compute_broken
    try:
        trainer.train()
    finally:
        ppo_trainer_module.ppo_loss = compute
    assert trainer.ppo_state.skipped_steps == 1
    assert all(weight.isfinite().all() for weight in full_weights(trainer.policy_model, trainer.value_model))


def train_again(folder: Path) -> None:
    """Step 5 of RLP-PPO keeps the user's value model, which FSDP cannot shard a second time."""
    tokenizer = tiny_tokenizer()
    save_model(folder / "refined", tiny_reward_model(tokenizer, seed=9), tokenizer)
    trainer = ppo_trainer(
        folder / "run",
        prompts(12),
        trainer_class=RLPPPOTrainer,
        config_class=RLPPPOConfig,
        model=tiny_causal_lm(tokenizer, tie_word_embeddings=False),
        value_model=tiny_reward_model(tokenizer, seed=5),
        preference_dataset=preferences(12),
        rlp_method="uml",
        **{**SETTINGS, "optim": "adamw_torch", "total_episodes": 4},
    )
    replay(trainer)
    trainer._refine_reward_model = lambda: SimpleNamespace(reward_model=folder / "refined")
    before = full_weights(trainer.value_model)
    trainer.train()
    assert_sharded(trainer.value_model)
    assert not all(map(torch.equal, full_weights(trainer.value_model), before))


def refine(folder: Path, joint_forward: bool, resumes: bool = False) -> dict[str, list[float]]:
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"method": "uml", "policy_samples": policy_samples(), "joint_forward": joint_forward}
    trainer = rlp_trainer(folder, data=preferences(32), **settings)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resumes else None)
    return {name: get_logged(trainer, name) for name in ("loss", "mi", "grad_norm")}


def train_with_skipped_views(folder: Path) -> None:
    """Process 1 skips a batch of views. Its backward pass must unshard the same layers, or process 0 waits forever."""
    compute = RepresentationTerm.__call__

    def compute_with_one_prompt(self, hidden, prompt_indices, step):
        is_skipped = step == 1 and self.heads_callback.accelerator.process_index == 1
        return compute(self, hidden, prompt_indices * (not is_skipped), step)

    RepresentationTerm.__call__ = compute_with_one_prompt
    try:
        log = refine(folder, joint_forward=False)
    finally:
        RepresentationTerm.__call__ = compute
    assert len(log["loss"]) == 4


def train_uml(folder: Path) -> None:
    for joint_forward in (True, False):
        expected = refine(folder / f"ddp-{joint_forward}", joint_forward)
        with fsdp():
            log = refine(folder / f"fsdp-{joint_forward}", joint_forward)
            assert log == {name: pytest.approx(values, rel=1e-4) for name, values in expected.items()}
    with fsdp():
        assert refine(folder / "fsdp-False", False, resumes=True) == log
        train_with_skipped_views(folder / "skipped")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    train_uml(folder)
    with fsdp():
        train_ppo(folder)
        train_with_nan(folder / "nan-fsdp")
        train_again(folder / "again")
    train_with_nan(folder / "nan-ddp")
    sys.stdout.write("both processes agree\n")
    leave_process_group()
