import pytest
import torch

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.reward.joint_forward import ForwardWithViews, stack_rows
from trl_rlp.trainer.score_head import score_layers


PAIRS = torch.tensor([[5, 6, 7], [8, 9, 0]])
VIEWS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 0, 0, 0], [7, 0, 0, 0, 0], [6, 5, 6, 5, 0]])


def test_rows_are_filled_up_to_the_longer_batch():
    joined = stack_rows(torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5], [6, 0, 0]]), value=0)
    assert joined.tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    joined = stack_rows(torch.tensor([[1, 2, 3]]), torch.tensor([[4]]), value=9)
    assert joined.tolist() == [[1, 2, 3], [4, 9, 9]]


@pytest.mark.parametrize("joint, calls", [(True, 1), (False, 2)])
def test_pairs_come_out_as_alone_and_views_with_their_states(joint, calls):
    model = tiny_reward_model(tiny_tokenizer())
    counted = []
    model.register_forward_hook(lambda *_: counted.append(1))
    views = {"input_ids": VIEWS, "attention_mask": (VIEWS != 0).long()}
    forward = ForwardWithViews(model, score_layers(model), views, pad_token_id=0, joint=joint)
    outputs = forward(input_ids=PAIRS, attention_mask=(PAIRS != 0).long(), use_cache=False, margin=torch.ones(1))
    assert len(counted) == calls
    alone = model(input_ids=PAIRS, attention_mask=(PAIRS != 0).long())
    assert outputs.logits.shape == (2, 1)
    assert torch.allclose(outputs.logits, alone.logits, atol=1e-6)
    scores = model(**views).logits
    assert forward.hidden.shape == (4, 16)
    assert torch.allclose(model.score(forward.hidden), scores, atol=1e-6)


@pytest.mark.parametrize("joint", [True, False])
def test_states_of_views_carry_gradients_to_the_trunk(joint):
    model = tiny_reward_model(tiny_tokenizer())
    views = {"input_ids": VIEWS, "attention_mask": (VIEWS != 0).long()}
    forward = ForwardWithViews(model, score_layers(model), views, pad_token_id=0, joint=joint)
    forward(input_ids=PAIRS, attention_mask=(PAIRS != 0).long())
    forward.hidden.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    assert model.score.weight.grad is None or model.score.weight.grad.abs().max() == 0
