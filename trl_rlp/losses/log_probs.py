"""Log-probabilities of sampled tokens, computed from logits in chunks to save memory."""

from collections.abc import Iterator
from typing import Any

import torch


SMALLEST = -1e30
"""Replaces a log-probability of minus infinity, because 0 times minus infinity is NaN."""

CPU_CHUNK = 2**19
"""Number of logits per chunk on a CPU. They fit into its cache."""

ACCELERATOR_CHUNK = 2**25
"""Number of logits per chunk on other devices. They keep an accelerator busy."""


def _split_tokens(logits: torch.Tensor) -> Iterator[slice]:
    """Splits the tokens into slices of consecutive tokens. Each slice has at least one token."""
    size = CPU_CHUNK if logits.device.type == "cpu" else ACCELERATOR_CHUNK
    step = max(1, size // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


class _TokenLogProbs(torch.autograd.Function):
    """Keeps only the logits for the backward pass, which creates one more tensor of their size: the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float):
        """Takes logits of shape `(tokens, vocabulary)` and ids of shape `(tokens,)`."""
        log_probs = logits.new_empty(tokens.shape, dtype=torch.float32)
        normalizers, entropies = torch.empty_like(log_probs), torch.empty_like(log_probs)
        for chunk in _split_tokens(logits):
            shifted = logits[chunk].float() / temperature  # (chunk, vocabulary)
            largest = shifted.amax(dim=-1, keepdim=True)  # (chunk, 1)
            shifted = shifted.sub_(largest)
            chosen = shifted.gather(-1, tokens[chunk, None]).squeeze(-1)  # (chunk,)
            weights = shifted.exp()  # (chunk, vocabulary)
            total = weights.sum(dim=-1)  # (chunk,)
            log_probs[chunk] = chosen - total.log()
            normalizers[chunk] = largest.squeeze(-1) + total.log()
            # Multiply and sum, because autocast computes dot products in half precision.
            mean = weights.mul_(shifted.clamp_(min=SMALLEST)).sum(dim=-1) / total  # (chunk,)
            entropies[chunk] = total.log() - mean
        ctx.save_for_backward(logits, tokens, normalizers)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor):
        """Computes d ln p(y) / d l_v = (1[v = y] - p(v)) / τ."""
        logits, tokens, normalizers = ctx.saved_tensors
        grad_logits, grad = torch.empty_like(logits), grad[:, None].float() / ctx.temperature  # grad: (tokens, 1)
        for chunk in _split_tokens(logits):
            scaled = logits[chunk].float() / ctx.temperature  # (chunk, vocabulary)
            probabilities = scaled.sub_(normalizers[chunk, None]).exp_()
            rows = probabilities.mul_(-grad[chunk])
            grad_logits[chunk] = rows.scatter_add_(-1, tokens[chunk, None], grad[chunk])
        return grad_logits, None, None


def token_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Computes the log-probability of each token, and the entropy of the distribution it was sampled from.

    $$\ln p_t = l_{t, y_t} / \tau - \ln \sum_v e^{l_{t, v} / \tau}$$

    `log_softmax` and `gather` return the same numbers, but they create several tensors of the size of the logits. For
    language models, these are the largest tensors of a training step. This function creates only one, the gradient,
    and processes a few tokens at a time.

    Args:
        logits (`torch.Tensor` of shape `(batch, length, vocabulary)`):
            Next-token logits. The logits at a position predict the token at the same position of `tokens`.
        tokens (`torch.Tensor` of shape `(batch, length)`):
            Token ids.
        temperature (`float`, *optional*, defaults to `1.0`):
            τ, above 0.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, length)` in fp32: Log-probabilities in nats, at
        most 0, and entropies in nats, at least 0. The entropies have no gradient.

    Raises:
        ValueError: If the shapes do not match or the temperature is not positive.

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
    rows = logits.flatten(0, 1), tokens.flatten()  # (batch * length, vocabulary), (batch * length,)
    log_probs, entropies = _TokenLogProbs.apply(*rows, temperature)
    return log_probs.view(tokens.shape), entropies.view(tokens.shape)
