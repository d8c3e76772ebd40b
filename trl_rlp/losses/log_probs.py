"""Log-probabilities of sampled tokens from logits, with one row of logits at a time in temporary memory."""

from typing import Any

import torch


SMALLEST = -1e30
"""Stands for a log-probability of minus infinity, so that 0 times it is 0."""


class _TokenLogProbs(torch.autograd.Function):
    """The forward pass keeps the logits and nothing else of their size, the backward pass makes one: the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float):
        log_probs = logits.new_empty(tokens.shape, dtype=torch.float32)
        normalisers, entropies = torch.empty_like(log_probs), torch.empty_like(log_probs)
        for row, ids in enumerate(tokens):
            scaled = logits[row].float() / temperature  # (length, vocabulary)
            normaliser = scaled.logsumexp(dim=-1)  # (length,)
            log_probs[row] = scaled.gather(-1, ids[:, None]).squeeze(-1) - normaliser
            shifted = scaled.sub_(normaliser[:, None]).clamp_(min=SMALLEST)
            entropies[row] = -torch.linalg.vecdot(shifted.exp(), shifted)
            normalisers[row] = normaliser
        ctx.save_for_backward(logits, tokens, normalisers)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor):
        logits, tokens, normalisers = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for row, ids in enumerate(tokens):
            scaled = logits[row].float() / ctx.temperature  # (length, vocabulary)
            probabilities = scaled.sub_(normalisers[row][:, None]).exp_()
            row_grad = grad[row][:, None].float() / ctx.temperature  # (length, 1)
            grad_logits[row] = probabilities.mul_(-row_grad).scatter_add_(-1, ids[:, None], row_grad)
        return grad_logits, None, None


def token_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Gives the log-probability of each token, and the entropy of the distribution that it was drawn from.

    $$\ln p_t = l_{t, y_t} / \tau - \ln \sum_v e^{l_{t, v} / \tau}$$

    `log_softmax` and `gather` give the same numbers, but make several tensors of the size of the logits, which for
    language models are the largest tensors of a training step. This makes one, the gradient, and works row by row.

    Args:
        logits (`torch.Tensor` of shape `(batch, length, vocabulary)`):
            Next-token logits, each at the position before its token.
        tokens (`torch.Tensor` of shape `(batch, length)`):
            Token ids.
        temperature (`float`, *optional*, defaults to `1.0`):
            τ, above 0.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, length)` in fp32: log-probabilities in nats, at
        most 0, and entropies in nats, at least 0, without gradient.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not positive.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import token_log_probs

    >>> log_probs, entropies = token_log_probs(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))
    >>> [round(value, 4) for value in log_probs[0].tolist()]  # -ln 4
    [-1.3863, -1.3863]

    ```
    """
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"`logits` must have shape (batch, length, vocabulary) and `tokens` (batch, length), got "
            f"{tuple(logits.shape)} and {tuple(tokens.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}.")
    return _TokenLogProbs.apply(logits, tokens, temperature)
