import pytest
import torch

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.trainer.reward.initial_model import init_reward_model


@pytest.fixture(scope="module")
def sft_model(tmp_path_factory):
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    return save(tiny_causal_lm(tokenizer).to(torch.bfloat16), tokenizer, tmp_path_factory.mktemp("sft"))


def test_equal_seeds_give_equal_heads(sft_model):
    heads = []
    for seed in (1, 1, 2):
        heads.append(init_reward_model(sft_model, seed)[0].score.weight)
        torch.rand(3)  # the head must not depend on earlier draws
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])
    assert heads[0].shape == (1, 16) and heads[0].abs().max() > 0


def test_all_other_weights_are_those_of_the_sft_model(sft_model):
    model, _ = init_reward_model(sft_model, seed=1)
    trunk = tiny_causal_lm(tiny_tokenizer(pad_is_eos=True)).to(torch.bfloat16).model.state_dict()
    weights = model.model.state_dict()
    assert set(weights) == set(trunk)
    assert all(weight.equal(trunk[name].float()) for name, weight in weights.items())


def test_padding_is_separate_from_eos(sft_model):
    """The tokenizer of the SFT model pads with EOS, so the reward would be read before EOS."""
    model, tokenizer = init_reward_model(sft_model, seed=1)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_model_is_in_fp32_unless_the_options_say_otherwise(sft_model):
    assert init_reward_model(sft_model, 1)[0].dtype == torch.float32
    model, _ = init_reward_model(sft_model, 1, {"dtype": "bfloat16", "num_labels": 3})
    assert model.dtype == torch.bfloat16 and model.config.num_labels == 1


def test_a_missing_model_is_named(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"No model could be loaded from '.*missing'\. Pass a folder"):
        init_reward_model(tmp_path / "missing", 1)
