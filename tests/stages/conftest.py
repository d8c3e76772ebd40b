import pytest

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer


@pytest.fixture(scope="session")
def sft_model(tmp_path_factory):
    """Folder of a policy with random weights."""
    tokenizer = tiny_tokenizer()
    return save(tiny_causal_lm(tokenizer), tokenizer, tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory):
    """Folder of a reward model with random weights."""
    tokenizer = tiny_tokenizer()
    return save(tiny_reward_model(tokenizer, seed=3), tokenizer, tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def opposite_reward_model(tmp_path_factory):
    """Folder of a reward model that scores every text with the negative of `reward_model`."""
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer, seed=3)
    model.score.weight.data.neg_()
    return save(model, tokenizer, tmp_path_factory.mktemp("opposite"))
