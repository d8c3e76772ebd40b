import pytest
import torch
from trl import RewardConfig

from trl_rlp.trainer import precision
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.precision import require_dtype, supported_precision
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


@pytest.fixture
def set_bf16_support(monkeypatch):
    """Sets whether the machine can train in bf16, on any machine."""

    def set_support(is_supported: bool) -> None:
        monkeypatch.setattr(precision, "is_torch_bf16_gpu_available", lambda: is_supported)
        monkeypatch.setattr(precision, "is_torch_xla_available", lambda: False)

    return set_support


@pytest.mark.parametrize(
    "is_supported, args, expected",
    [
        (False, {}, False),
        (True, {}, True),
        (True, {"use_cpu": True}, False),
        (True, {"fp16": True}, False),
        (True, {"bf16": False}, False),
        (False, {"bf16": True}, True),
    ],
)
def test_the_user_decides_and_then_the_machine(set_bf16_support, is_supported, args, expected):
    set_bf16_support(is_supported)
    assert supported_precision(args) == {**args, "bf16": expected}


def test_other_arguments_are_kept(set_bf16_support):
    set_bf16_support(False)
    assert supported_precision({"seed": 3}) == {"seed": 3, "bf16": False}


def test_our_configuration_uses_fp32_where_trls_fails(tmp_path, set_bf16_support, monkeypatch):
    set_bf16_support(False)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match="bf16"):
        RewardConfig(str(tmp_path))
    config = RLPRewardConfig(str(tmp_path))
    assert (config.bf16, config.fp16) == (False, False)


def test_an_explicit_bf16_fails_as_in_trl(tmp_path, set_bf16_support, monkeypatch):
    set_bf16_support(False)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match="Your setup doesn't support bf16"):
        RLPRewardConfig(str(tmp_path), bf16=True)


def test_bf16_on_the_cpu_can_be_set(tmp_path):
    assert RLPRewardConfig(str(tmp_path), bf16=True, use_cpu=True).bf16 is True


@pytest.mark.parametrize("options", [None, {}, {"dtype": "auto"}, {"dtype": "bfloat16"}, {"dtype": torch.float32}])
def test_names_of_dtypes_are_accepted(options):
    require_dtype(options)


@pytest.mark.parametrize("dtype", ["bf16", "nn"])
def test_an_unknown_dtype_is_refused_when_the_configuration_is_built(tmp_path, dtype):
    for config_class in (RLPRewardConfig, PPOConfig):
        with pytest.raises(ValueError, match=f"`model_init_kwargs.dtype` must be .*, got '{dtype}'"):
            config_class(str(tmp_path), use_cpu=True, model_init_kwargs={"dtype": dtype})
