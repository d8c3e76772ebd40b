"""Log-probabilities of tokens, compared with `log_softmax` and with calculations by hand."""

import math

import pytest
import torch

from trl_rlp.losses.log_probs import token_log_probs


def test_log_probs_and_entropies_match_a_calculation_by_hand():
    """
    At temperature 1 the logits are (ln 1, ln 3), so p = 1/4, 3/4. At temperature 1/2 they are (ln 1, ln 9), so
    p = 1/10, 9/10. The entropies are 1/4 ln 4 + 3/4 ln 4/3, and 1/10 ln 10 + 9/10 ln 10/9.
    """
    logits = torch.tensor([[[0.0, math.log(3)]] * 2])
    tokens = torch.tensor([[0, 1]])
    log_probs, entropies = token_log_probs(logits, tokens)
    assert log_probs.exp()[0].tolist() == pytest.approx([0.25, 0.75])
    assert entropies[0].tolist() == pytest.approx([math.log(4) / 4 + 0.75 * math.log(4 / 3)] * 2)
    log_probs, entropies = token_log_probs(logits, tokens, temperature=0.5)
    assert log_probs.exp()[0].tolist() == pytest.approx([0.1, 0.9])
    assert entropies[0].tolist() == pytest.approx([math.log(10) / 10 + 0.9 * math.log(10 / 9)] * 2)


@pytest.mark.parametrize("chunk", [1, 55, 2**19], ids=["one token", "five tokens", "all tokens"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_values_and_gradients_equal_those_of_log_softmax(monkeypatch, temperature, chunk):
    """There are twelve tokens with eleven logits each. The chunk size makes no difference."""
    monkeypatch.setattr("trl_rlp.losses.log_probs.CPU_CHUNK", chunk)
    torch.manual_seed(0)
    logits = (5 * torch.randn(3, 4, 11)).requires_grad_()
    tokens, weights = torch.randint(11, (3, 4)), torch.randn(3, 4)
    expected = (logits / temperature).log_softmax(-1)
    (expected_grad,) = torch.autograd.grad(
        (expected.gather(-1, tokens[..., None]).squeeze(-1) * weights).sum(), logits, retain_graph=True
    )
    log_probs, entropies = token_log_probs(logits, tokens, temperature)
    assert torch.allclose(log_probs, expected.gather(-1, tokens[..., None]).squeeze(-1), atol=1e-6)
    assert torch.allclose(entropies, -(expected.exp() * expected).sum(-1), atol=1e-5)
    (grad,) = torch.autograd.grad((log_probs * weights).sum(), logits)
    assert torch.allclose(grad, expected_grad, atol=1e-6)
    assert not entropies.requires_grad


def test_half_precision_is_summed_in_fp32():
    logits = torch.randn(1, 3, 1000).bfloat16().requires_grad_()
    tokens = torch.randint(1000, (1, 3))
    log_probs, _ = token_log_probs(logits, tokens)
    assert log_probs.dtype == torch.float32
    expected = logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    assert torch.allclose(log_probs, expected, atol=1e-6)
    (grad,) = torch.autograd.grad(log_probs.sum(), logits)
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_logits_stay_finite(scale):
    logits = torch.tensor([[[scale, 0.0, -scale]]], requires_grad=True)
    log_probs, entropies = token_log_probs(logits, torch.tensor([[1]]))
    assert log_probs.item() == pytest.approx(-1e4)
    assert entropies.item() == pytest.approx(0)
    (grad,) = torch.autograd.grad(log_probs.sum(), logits)
    assert grad.isfinite().all()


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    logits, tokens = 3 * torch.randn(1, 2, 5000), torch.randint(5000, (1, 2))
    expected = token_log_probs(logits, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        result = token_log_probs(logits, tokens)
    assert all(torch.equal(*tensors) for tensors in zip(result, expected, strict=True))


def test_a_token_of_probability_0_does_not_change_the_entropy():
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    log_probs, entropies = token_log_probs(logits, torch.tensor([[1]]))
    assert log_probs.item() == pytest.approx(-math.log(2))
    assert entropies.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5)])
def test_shapes_that_do_not_match_are_refused(shape):
    with pytest.raises(ValueError, match=r"`logits` must have shape \(batch, length, vocabulary\)"):
        token_log_probs(torch.zeros(shape), torch.zeros(2, 3, dtype=torch.long))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be above 0, got 0"):
        token_log_probs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=0)
