from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.reward_runs import SETTINGS
from tests.tiny_models import tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.reward.representation_term import RepresentationTerm
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


def build_term(folder, model=None, **settings) -> RepresentationTerm:
    args = RLPRewardConfig(str(folder), method="uml", **{**SETTINGS, **settings})
    model = model or tiny_reward_model(tiny_tokenizer())
    return RepresentationTerm(model, 0, args, Accelerator(cpu=True))


def get_heads(term) -> dict[str, torch.Tensor]:
    return term.heads_callback.heads.state_dict()


def test_equal_seeds_give_equal_heads_without_random_draws_of_the_model(tmp_path):
    """The model's later draws, such as dropout, must stay those of `method="none"`."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = get_heads(build_term(tmp_path, seed=1, model=(model := tiny_reward_model(tiny_tokenizer()))))
    torch.manual_seed(0)
    second = get_heads(build_term(tmp_path, seed=1, model=model))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    other = get_heads(build_term(tmp_path, seed=2, model=model))
    third = get_heads(build_term(tmp_path, seed=1, model=model))
    assert all(first[name].equal(second[name]) and first[name].equal(third[name]) for name in first)
    assert any(not first[name].equal(other[name]) for name in first)


def test_the_kl_weight_rises_over_the_ramp(tmp_path):
    """The weight is 2 and the ramp has 4 steps: 0, 0.5, 1, 1.5 at optimizer steps 0 to 3, then 2."""
    term = build_term(tmp_path, kl_weight=2.0, kl_ramp_steps=4)
    assert [term.compute_kl_weight(step) for step in (0, 1, 2, 3, 4, 9)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    constant = build_term(tmp_path, kl_weight=2.0, kl_ramp_steps=0)
    assert [constant.compute_kl_weight(step) for step in (0, 9)] == [2.0, 2.0]


def test_the_term_is_the_weighted_loss_of_both_halves(tmp_path):
    hidden, indices = torch.randn(8, 16), torch.arange(4)
    term = build_term(tmp_path, representation_coef=0.25, kl_weight=2.0, kl_ramp_steps=4)
    torch.manual_seed(1)
    value = term(hidden, indices, step=1)
    torch.manual_seed(1)
    expected = term.heads_callback.heads(hidden[:4], hidden[4:], indices, kl_weight=0.5)["loss"]
    assert value.item() == pytest.approx(0.25 * expected.item(), rel=1e-6)
    assert term.log.means(Accelerator(cpu=True))["representation_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_with_one_prompt_is_zero_and_counted(tmp_path):
    """A lower bound needs views of different prompts."""
    term = build_term(tmp_path)
    assert term(torch.randn(4, 16), torch.tensor([3, 3]), step=0).item() == 0
    assert term(torch.randn(4, 16), torch.tensor([3, 4]), step=0).item() != 0
    assert term.log.means(Accelerator(cpu=True))["skipped_view_batches"] == 1


def test_a_skipped_batch_stays_in_the_graph_with_gradients_of_zero(tmp_path):
    """Sharded models exchange weights and gradients in the backward pass, so it must run on all processes."""
    hidden = torch.full((4, 16), torch.nan).requires_grad_()
    loss = build_term(tmp_path)(hidden, torch.tensor([3, 3]), step=0)
    loss.backward()
    assert loss.item() == 0 and hidden.grad.eq(0).all()


def test_hidden_states_of_another_device_are_moved_to_that_of_the_heads(tmp_path):
    """The last layers of a model with a device map may be on another device than the heads."""
    term = build_term(tmp_path)
    hidden = SimpleNamespace(to=lambda device: torch.randn(4, 16, device=device))
    assert term(hidden, torch.tensor([3, 4]), step=0).isfinite()


def test_processes_draw_independent_latents_and_keep_equal_global_generators(tmp_path):
    """Otherwise the average over processes would not average the noise. Process 1 skips the first batch."""
    args = RLPRewardConfig(str(tmp_path), method="uml", **SETTINGS)
    hidden, indices, losses, states = torch.randn(8, 16), torch.arange(4), [], []
    for process in range(2):
        accelerator = SimpleNamespace(
            num_processes=2, process_index=process, parallelism_config=None, device=torch.device("cpu")
        )
        term = RepresentationTerm(tiny_reward_model(tiny_tokenizer()), 0, args, accelerator)
        torch.manual_seed(1)
        term(hidden, indices * (1 - process), step=0)
        losses.append([term(hidden, indices, step=0).item() for _ in range(2)])
        states.append(torch.get_rng_state())
    assert len({*losses[0], *losses[1]}) == 4
    assert torch.equal(*states)


@pytest.mark.parametrize("is_joint, calls", [(True, 1), (False, 2)])
def test_the_forward_pass_is_joint_if_the_configuration_says_so(tmp_path, is_joint, calls):
    model, passes = tiny_reward_model(tiny_tokenizer()), []
    model.register_forward_hook(lambda *_: passes.append(1))
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    views = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    forward = build_term(tmp_path, model, joint_forward=is_joint).build_forward(model, views)
    forward(**views)
    assert len(passes) == calls and forward.hidden.shape == (2, 16)


def test_a_model_without_a_known_score_layer_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="score"):
        build_term(tmp_path, torch.nn.Sequential(torch.nn.Linear(4, 1)))
    assert build_term(tmp_path, tiny_nli(tiny_tokenizer(), labels=("score",)))
