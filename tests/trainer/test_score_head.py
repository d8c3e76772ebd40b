import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.score_inputs import find_score_layers
from trl_rlp.trainer.score_head import add_score_head, has_frozen_score_head, keep_trained_head_in_fp32


@pytest.mark.parametrize(
    "settings, is_frozen",
    [({}, True), ({"modules_to_save": ["score"]}, False), ({"task_type": "SEQ_CLS"}, False)],
    ids=str,
)
def test_a_frozen_head_is_detected(settings, is_frozen):
    model = tiny_reward_model(tiny_tokenizer())
    assert not has_frozen_score_head(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], **settings))
    assert has_frozen_score_head(adapted) is is_frozen


def test_the_head_is_added_to_a_configuration_without_it(caplog):
    PartialState(cpu=True)  # accelerate's logger needs it
    config = LoraConfig(modules_to_save=["embed_tokens"])
    assert add_score_head(config).modules_to_save == ["embed_tokens", "classifier", "score"]
    assert config.modules_to_save == ["embed_tokens"]
    assert "score head" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="SEQ_CLS"),
        LoraConfig(modules_to_save=["score"]),
        LoraConfig(modules_to_save=["classifier"]),
        PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    ],
    ids=["SEQ_CLS", "score", "classifier", "prefix"],
)
def test_other_configurations_are_not_changed(config, caplog):
    assert add_score_head(config) is config
    assert caplog.text == ""


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
def test_a_trained_head_of_a_bf16_model_is_in_fp32(autocast):
    """PEFT casts adapters only. In bf16, a step of 1e-5 does not change a weight above 0.004."""
    model = tiny_reward_model(tiny_tokenizer()).bfloat16()
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    keep_trained_head_in_fp32(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    (head,) = [parameter for name, parameter in trained.items() if "score" in name]
    nn.init.constant_(head, 0.02)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(torch.tensor([[5, 6, 7]])).logits.float().sum().backward()
    optimizer.step()
    assert (head != 0.02).all()
    merged = model.merge_and_unload()
    assert merged.dtype == torch.bfloat16 and torch.equal(merged.score.weight, head)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("has_adapter", [False, True], ids=["whole model", "frozen head"])
def test_other_heads_keep_their_dtype(dtype, has_adapter):
    model = tiny_reward_model(tiny_tokenizer()).to(dtype)
    if has_adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    keep_trained_head_in_fp32(model)
    assert find_score_layers(model)[0].weight.dtype == dtype
