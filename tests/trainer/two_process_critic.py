"""Run on two processes: a sharded critic is saved in full. Replicated critics start equal."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import gather_object
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.ppo.ppo_checkpoints import VALUE_MODEL, load_critic, save_critic
from trl_rlp.trainer.ppo.sharding import prepare_critic
from trl_rlp.trainer.ppo.token_models import Critic
from trl_rlp.trainer.score_head import add_score_head


IDS = torch.tensor([[40, 41, 42, 43, 44]])


def make_critic(seed: int, has_adapter: bool) -> Critic:
    model = tiny_reward_model(tiny_tokenizer(), seed=seed)
    if has_adapter:
        model = get_peft_model(model, add_score_head(LoraConfig(r=2, target_modules=["q_proj"])))
    return Critic(model)


def make(seed: int, has_adapter: bool) -> tuple[Critic, torch.optim.Optimizer]:
    critic = make_critic(seed, has_adapter)
    for layer in critic.model.get_submodule("base_model.model.model" if has_adapter else "model").layers:
        fully_shard(layer)
    fully_shard(critic)
    return critic, torch.optim.AdamW([p for p in critic.parameters() if p.requires_grad], lr=1e-2)


def values(critic: Critic) -> torch.Tensor:
    return critic(IDS, torch.ones_like(IDS), torch.arange(5)[None], num_tokens=3)


def step(critic: Critic, optimizer: torch.optim.Optimizer) -> None:
    values(critic).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def replicate(state: PartialState) -> None:
    """Under DeepSpeed, each process initializes the adapter with its own random numbers."""
    critic = make_critic(0, has_adapter=True)
    torch.manual_seed(state.process_index)
    for name, parameter in critic.named_parameters():
        if "lora_A" in name:
            torch.nn.init.normal_(parameter)
    prepare_critic(critic, None, SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, device=state.device))
    first, second = gather_object([{name: weight.detach() for name, weight in critic.named_parameters()}])
    assert all(torch.equal(first[name], second[name]) for name in first)


def main(folder: Path, has_adapter: bool) -> None:
    state = PartialState(cpu=True)
    if has_adapter:
        replicate(state)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP, is_main_process=state.is_main_process, unwrap_model=lambda model: model
    )
    critic, optimizer = make(0, has_adapter)
    assert all(isinstance(parameter, DTensor) for parameter in critic.parameters())
    for _ in range(2):
        step(critic, optimizer)
    save_critic(folder, critic, optimizer, accelerator)
    state.wait_for_everyone()
    saved = values(critic)
    # The file of an adapter holds only the trained weights, so the base model must be the same.
    again, again_optimizer = make(0 if has_adapter else 1, has_adapter)
    load_critic(folder, again, again_optimizer, accelerator)
    assert torch.equal(values(again), saved)
    step(critic, optimizer)
    step(again, again_optimizer)
    assert torch.equal(values(again), values(critic))
    if not has_adapter:
        plain = Critic(AutoModelForSequenceClassification.from_pretrained(folder / VALUE_MODEL))
        assert torch.allclose(values(plain), saved, atol=1e-6)
    sys.stdout.write("both processes agree\n")
    sys.stdout.flush()
    state.wait_for_everyone()
    # With a normal exit, FSDP's threads sometimes abort the interpreter after all work is done.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), has_adapter="adapter" in sys.argv)
