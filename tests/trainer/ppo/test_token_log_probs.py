import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from trl_rlp.trainer.ppo.token_models import accepts_position_ids, completion_log_probs, position_ids_from_mask


FAMILIES = {
    "rotary": LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ),
    "absolute": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=1),
}
PROMPTS = [[5, 6, 7, 8], [9, 10]]
COMPLETIONS = [[11, 12], [13, 14, 15]]


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 11, 12, 0], [0, 0, 9, 10, 13, 14, 15]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]])
    return ids, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_read_as_if_it_stood_alone(family):
    model = model_of(FAMILIES[family])
    with torch.no_grad():
        log_probs, entropies = completion_log_probs(model, *padded(), 3, temperature=0.7)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1)
        own = expected[range(len(completion)), completion]
        assert torch.allclose(log_probs[row, : len(completion)], own, atol=1e-5)
        entropy = -(expected.exp() * expected).sum(-1)
        assert torch.allclose(entropies[row, : len(completion)], entropy, atol=1e-5)


def test_gradients_reach_the_model():
    model = model_of(FAMILIES["rotary"])
    log_probs, _ = completion_log_probs(model, *padded(), 3, temperature=1.0)
    log_probs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_positions_begin_where_the_text_does():
    assert position_ids_from_mask(torch.tensor([[0, 0, 1, 1, 0]])).tolist() == [[0, 0, 0, 1, 1]]


def test_models_that_take_no_positions_are_known():
    model = model_of(FAMILIES["rotary"])
    assert accepts_position_ids(model)
    assert accepts_position_ids(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    assert not accepts_position_ids(torch.nn.Linear(1, 1))
