import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from tests.tiny_models import tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.score_inputs import (
    capture_score_inputs,
    find_score_layers,
    find_score_layers_if_any,
    get_linear_layer,
    select_scored_states,
)


def tiny_roberta(tokenizer):
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    return RobertaForSequenceClassification(config).eval()


MODELS = {
    "llama": tiny_reward_model,
    "bert": lambda tokenizer: tiny_nli(tokenizer, labels=("score",)),
    "roberta": tiny_roberta,
    "adapter": lambda tokenizer: get_peft_model(
        tiny_reward_model(tokenizer), LoraConfig(target_modules=["q_proj"], modules_to_save=["score"])
    ),
    "adapted head": lambda tokenizer: get_peft_model(
        tiny_reward_model(tokenizer), LoraConfig(r=2, target_modules=["q_proj", "score"])
    ),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_the_score_is_a_linear_function_of_the_selected_state(build):
    """Rows of 3, 2 and 5 tokens: the selected state times the layer's weights is the score of the row."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = build(tokenizer).eval()
    input_ids = torch.tensor([[9, 8, 7, 0, 0], [6, 5, 0, 0, 0], [9, 9, 8, 8, 7]])
    layers = find_score_layers(model)
    with capture_score_inputs(layers) as captured, torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=(input_ids != 0).long()).logits
    hidden = select_scored_states(captured[-1], input_ids, pad_token_id=0)
    layer = get_linear_layer(layers[0])
    expected = hidden @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    assert hidden.shape == (3, 16)
    assert torch.allclose(logits, expected, atol=1e-6)


def test_an_adapter_around_the_score_layer_is_found_and_its_own_layers_are_not():
    """An adapter of rank 1 also has layers with one output. If the head is copied, layer and copy are found."""
    config = LoraConfig(r=1, target_modules=["score"])
    model = get_peft_model(tiny_reward_model(tiny_tokenizer()), config).get_base_model()
    assert find_score_layers(model) == [model.score]
    assert get_linear_layer(model.score) is model.score.base_layer
    config = LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=["score"])
    model = get_peft_model(tiny_reward_model(tiny_tokenizer()), config).get_base_model()
    assert find_score_layers(model) == [model.score.original_module, model.score.modules_to_save["default"]]


def test_the_hook_is_removed_after_the_pass():
    model = tiny_reward_model(tiny_tokenizer())
    with capture_score_inputs(find_score_layers(model)) as captured:
        pass
    model(input_ids=torch.tensor([[5, 6]]))
    assert captured == []


def test_the_last_token_that_is_not_padding_is_selected():
    """Positions 1, 2 and 0. The pad token is 0. A pad token inside the text does not end the text."""
    hidden = torch.arange(9.0).reshape(3, 3, 1)
    input_ids = torch.tensor([[5, 6, 0], [5, 0, 6], [5, 0, 0]])
    assert select_scored_states(hidden, input_ids, 0).flatten().tolist() == [1.0, 5.0, 6.0]


def test_a_pooled_state_is_returned_unchanged():
    hidden = torch.randn(2, 4)
    assert select_scored_states(hidden, torch.ones(2, 7), 0) is hidden


def test_a_model_that_adds_tokens_is_an_error():
    with pytest.raises(ValueError, match="got 5 positions for 3 tokens.*adapter that adds no tokens"):
        select_scored_states(torch.zeros(2, 5, 4), torch.ones(2, 3), 0)


def test_an_unknown_head_is_an_error():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.reward = nn.Linear(4, 1)

    with pytest.raises(ValueError, match="`model` is a `Unknown`.*no linear score layer.*transformers"):
        find_score_layers(Unknown())
    assert find_score_layers_if_any(Unknown()) == []
