import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny_models import tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.ppo.ppo_setup import init_value_model
from trl_rlp.trainer.ppo.token_models import Critic, position_ids_from_mask


TOKENIZER = tiny_tokenizer()
IDS = torch.tensor([[0, 0, 20, 21, 30, 31], [22, 23, 24, 25, 32, 0]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])


def test_values_are_the_scores_before_each_token():
    model = tiny_reward_model(TOKENIZER)
    values = Critic(model)(IDS, MASK, position_ids_from_mask(MASK), 2)
    assert values.shape == (2, 2)
    for row, ids in enumerate(([20, 21, 30, 31], [22, 23, 24, 25, 32])):
        scores = model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]
        first = 1 if row == 0 else 3
        expected = scores[first : len(ids) - 1]
        assert torch.allclose(values[row, : len(expected)], expected, atol=1e-5)


def test_gradients_reach_the_trunk():
    model = tiny_reward_model(TOKENIZER)
    Critic(model)(IDS, MASK, position_ids_from_mask(MASK), 2).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_classifier_that_pools_is_refused():
    critic = Critic(tiny_nli(TOKENIZER, labels=("value",)))
    with pytest.raises(ValueError, match="`BertForSequenceClassification`, which pools before it scores"):
        critic(IDS, MASK, position_ids_from_mask(MASK), 2)


def test_a_classifier_of_two_labels_is_refused():
    with pytest.raises(ValueError, match="`value_model` has `num_labels`=2, but a value is one number"):
        Critic(tiny_reward_model(TOKENIZER, num_labels=2))


def test_it_works_without_a_pad_token():
    model = tiny_reward_model(TOKENIZER)
    model.config.pad_token_id = None
    assert Critic(model)(IDS, MASK, position_ids_from_mask(MASK), 2).isfinite().all()


def same_trunk(model, other) -> bool:
    mine, theirs = model.base_model.state_dict(), other.base_model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def shares_nothing(model, other) -> bool:
    return not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.parameters()}


@pytest.mark.parametrize("init", ["reward", None])
def test_it_starts_from_the_reward_model_with_a_head_of_zeros(init):
    policy, reward = tiny_causal_lm(TOKENIZER), tiny_reward_model(TOKENIZER, seed=3).requires_grad_(False)
    model = init_value_model(init, policy, reward)
    assert same_trunk(model, reward) and shares_nothing(model, reward)
    assert not model.score.weight.any() and reward.score.weight.any()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("init, reward", [("policy", tiny_reward_model(TOKENIZER, seed=3)), (None, None)])
def test_it_starts_from_the_policy(init, reward):
    policy = tiny_causal_lm(TOKENIZER)
    model = init_value_model(init, policy, reward)
    assert same_trunk(model, policy) and shares_nothing(model, policy)
    assert not model.score.weight.any()
    assert model.config.num_labels == 1


def test_adapters_of_the_policy_are_left_out():
    policy = tiny_causal_lm(TOKENIZER)
    expected = tiny_causal_lm(TOKENIZER)
    adapted = get_peft_model(policy, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert same_trunk(init_value_model("policy", adapted, None), expected)


def test_a_missing_reward_model_is_named():
    with pytest.raises(ValueError, match='`value_model_init`="reward", but there is no `reward_model`'):
        init_value_model("reward", tiny_causal_lm(TOKENIZER), None)
