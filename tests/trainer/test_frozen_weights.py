import pytest
import torch
from torch import nn

from trl_rlp.trainer.frozen_weights import frozen, keep_requires_grad, require_trainable


def build() -> nn.Module:
    """A part of the weights is frozen, and a part of the model is in evaluation mode."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model[0].bias.requires_grad_(False)
    model[1].eval()
    return model


def describe(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [p.requires_grad for p in model.parameters()], [module.training for module in model.modules()]


def test_a_model_is_frozen_inside_the_block_only():
    model = build()
    before = describe(model)
    with frozen(model):
        assert describe(model) == ([False, False], [False, False, False])
        assert not torch.is_grad_enabled()
    assert describe(model) == before == ([True, False], [True, True, False])
    with pytest.raises(RuntimeError), frozen(model):
        raise RuntimeError
    assert describe(model) == before


def test_flags_are_restored():
    model = build()
    with keep_requires_grad(model):
        model.requires_grad_(True)
    assert [p.requires_grad for p in model.parameters()] == [True, False]


def test_one_weight_is_enough_to_train():
    model = build()
    require_trainable(model, "model", "peft_config")
    model.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"`value_model` has nothing to train.*`value_peft_config`.*is_trainable=True"
    ):
        require_trainable(model, "value_model", "value_peft_config")
