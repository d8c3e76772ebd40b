import pytest
import torch

from tests.tiny_models import tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.score_inputs import find_score_layers
from trl_rlp.trainer.reward.joint_forward import JointForward, stack_rows


PAIRS = torch.tensor([[5, 6, 7], [8, 9, 0]])
VIEWS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 0, 0, 0], [7, 0, 0, 0, 0], [6, 5, 6, 5, 0]])


def test_rows_are_padded_to_the_longer_batch():
    joined = stack_rows(torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5], [6, 0, 0]]), value=0)
    assert joined.tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    joined = stack_rows(torch.tensor([[1, 2, 3]]), torch.tensor([[4]]), value=9)
    assert joined.tolist() == [[1, 2, 3], [4, 9, 9]]


@pytest.mark.parametrize("is_joint, calls", [(True, 1), (False, 2)])
@pytest.mark.parametrize("is_causal", [True, False], ids=["decoder", "encoder"])
def test_outputs_of_pairs_and_states_of_views_equal_separate_passes(is_joint, calls, is_causal):
    """In a decoder, text before the padding never sees it. An encoder needs the right mask. Its weights are large."""
    tokenizer = tiny_tokenizer()
    encoder = tiny_nli(tokenizer, labels=("score",), initializer_range=1.0)
    model = tiny_reward_model(tokenizer) if is_causal else encoder
    (score,) = find_score_layers(model)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    views = {"input_ids": VIEWS, "attention_mask": (VIEWS != 0).long()}
    forward = JointForward(model, [score], views, pad_token_id=0, is_joint=is_joint)
    outputs = forward(
        input_ids=PAIRS,
        attention_mask=(PAIRS != 0).long(),
        use_cache=False,
        **({"margin": torch.ones(1)} if is_causal else {}),
    )
    assert len(passes) == calls
    separate = model(input_ids=PAIRS, attention_mask=(PAIRS != 0).long())
    assert outputs.logits.shape == (2, 1)
    assert torch.allclose(outputs.logits, separate.logits, atol=1e-6)
    scores = model(**views).logits
    assert forward.hidden.shape == (4, 16)
    assert torch.allclose(score(forward.hidden), scores, atol=1e-6)


@pytest.mark.parametrize("is_joint", [True, False])
def test_gradients_of_view_states_reach_the_trunk(is_joint):
    model = tiny_reward_model(tiny_tokenizer())
    views = {"input_ids": VIEWS, "attention_mask": (VIEWS != 0).long()}
    forward = JointForward(model, find_score_layers(model), views, pad_token_id=0, is_joint=is_joint)
    forward(input_ids=PAIRS, attention_mask=(PAIRS != 0).long())
    forward.hidden.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    assert model.score.weight.grad is None or model.score.weight.grad.abs().max() == 0
