"""The critic and the reference policy in distributed training. FSDP2 itself runs in `two_process_fsdp.py`."""

from types import SimpleNamespace

import pytest
import torch
import trl.models
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from tests.ppo_runs import ppo_trainer
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.sharding import critic_autocast, on_device, own_layers, prepare_critic, prepare_reference
from trl_rlp.trainer.ppo.token_models import Critic


TOKENIZER = tiny_tokenizer()
FSDP, DEEPSPEED = DistributedType.FSDP, DistributedType.DEEPSPEED


@pytest.fixture
def plugin(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin writes it
    return FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")


def count_wrapped_layers(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> int:
    plugin.set_auto_wrap_policy(model)
    is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    return sum(map(is_wrapped, model.modules()))


def other_reward_model() -> GPT2ForSequenceClassification:
    sizes = {"n_embd": 8, "n_layer": 3, "n_head": 1, "n_positions": 64}
    return GPT2ForSequenceClassification(GPT2Config(vocab_size=len(TOKENIZER), num_labels=1, **sizes))


@pytest.mark.parametrize("is_critic_first", [True, False])
@pytest.mark.parametrize("build, layers", [(lambda: tiny_reward_model(TOKENIZER), 2), (other_reward_model, 3)])
def test_all_layers_of_critic_and_policy_are_wrapped(plugin, is_critic_first, build, layers):
    """accelerate keeps the names of the first model's layers, here those of a critic without layers of that name."""
    policy, critic = tiny_causal_lm(TOKENIZER), Critic(build())
    if not is_critic_first:
        assert count_wrapped_layers(policy, plugin) == 2
    with own_layers(critic, plugin):
        assert count_wrapped_layers(critic, plugin) == layers
    assert count_wrapped_layers(policy, plugin) == 2


def test_layers_that_the_user_names_are_wrapped(plugin):
    plugin.transformer_cls_names_to_wrap = ["LlamaMLP"]
    with own_layers(Critic(tiny_reward_model(TOKENIZER)), plugin):
        assert plugin.transformer_cls_names_to_wrap == ["LlamaMLP"]
    with own_layers(Critic(other_reward_model()), plugin):
        assert plugin.transformer_cls_names_to_wrap == ["GPT2Block"]
    assert plugin.transformer_cls_names_to_wrap == ["LlamaMLP"]


class Moved(nn.Linear):
    """Records where it is moved."""

    def __init__(self):
        super().__init__(1, 1)
        self.moves: list[str] = []

    def to(self, device: torch.device) -> "Moved":
        self.moves.append(str(device))
        return self


def test_a_model_is_on_the_device_only_inside():
    model = Moved()
    with pytest.raises(KeyError), on_device(model, torch.device("cuda:0")):
        assert model.moves == ["cuda:0"]
        raise KeyError
    assert model.moves == ["cuda:0", "cpu"]
    with on_device(model, torch.device("cpu")):
        pass
    assert len(model.moves) == 2


def test_rewards_are_standardized_on_the_device_before_the_policy_is_sharded(tmp_path, monkeypatch):
    """Under FSDP and DeepSpeed, transformers leaves the policy on the CPU until it prepares it."""
    trainer, moves = ppo_trainer(tmp_path, standardize_rewards=True), []
    monkeypatch.setattr(trainer.model, "to", lambda device: moves.append(str(device)))
    monkeypatch.setattr("trl_rlp.trainer.ppo.ppo_trainer.standardize", lambda *args: moves.append("sampled"))
    monkeypatch.setattr(PPOConfig, "device", torch.device("cuda:0"))
    trainer._standardize_rewards()
    assert moves == ["cuda:0", "sampled", "cpu"]


@pytest.mark.parametrize("is_own", [True, False])
def test_deepspeed_gets_a_frozen_copy_of_the_users_reference(monkeypatch, is_own):
    given, accelerator = tiny_causal_lm(TOKENIZER).train(), SimpleNamespace(distributed_type=DEEPSPEED)
    monkeypatch.setattr(trl.models, "prepare_deepspeed", lambda model, accelerator: model)
    prepared = prepare_reference(given, accelerator, is_own)
    assert (prepared is given) == is_own and not prepared.training
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert is_own or (given.training and all(parameter.requires_grad for parameter in given.parameters()))


def test_an_engine_of_deepspeed_does_not_hold_the_critic():
    critic = Critic(tiny_reward_model(TOKENIZER))
    optimizer = torch.optim.SGD(critic.parameters(), lr=1.0)
    accelerator = SimpleNamespace(distributed_type=DEEPSPEED, device=torch.device("cpu"))
    assert prepare_critic(critic, optimizer, accelerator) == (critic, optimizer)


def test_fsdp_moves_the_critic_layer_by_layer(plugin, monkeypatch):
    """The whole critic in fp32 may not fit on one device."""
    critic = Critic(tiny_reward_model(TOKENIZER))
    monkeypatch.setattr(critic, "to", pytest.fail)
    accelerator = SimpleNamespace(
        distributed_type=FSDP, state=SimpleNamespace(fsdp_plugin=plugin), prepare=lambda *prepared: prepared
    )
    assert prepare_critic(critic, None, accelerator) == (critic, None)


@pytest.mark.parametrize(
    "distributed_type, precision, dtype",
    [(DEEPSPEED, "bf16", torch.bfloat16), (DEEPSPEED, "no", torch.float32), (FSDP, "bf16", torch.float32)],
)
def test_the_critic_has_mixed_precision_of_its_own_under_deepspeed_only(distributed_type, precision, dtype):
    accelerator = SimpleNamespace(
        distributed_type=distributed_type, mixed_precision=precision, device=torch.device("cpu")
    )
    with critic_autocast(accelerator):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
