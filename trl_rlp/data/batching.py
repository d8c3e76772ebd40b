"""Padded batches of token id rows, and models in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trl_rlp.data.context import read_context


TOKENS_PER_FORWARD = 2**14
"""Maximum number of tokens of a forward pass without gradients on an accelerator. They keep it busy."""

LOGITS_PER_FORWARD = 2**29
"""Maximum number of logits of a forward pass without gradients on an accelerator: 2 GiB in fp32."""


def limit_rows(rows: int, length: int, num_logits: int, device: torch.device) -> int:
    """
    Limits the number of rows of a forward pass without gradients by the memory of an accelerator.

    Args:
        rows (`int`):
            Number of rows, at least 1. On a CPU it does not change.
        length (`int`):
            Length of each row, in tokens, padding included.
        num_logits (`int`):
            Number of logits that the pass keeps for each row. 0 if it keeps none.
        device (`torch.device`):
            Device of the model.

    Returns:
        `int`: Number of rows, at least 1, with at most [`TOKENS_PER_FORWARD`] tokens and [`LOGITS_PER_FORWARD`]
        logits.
    """
    if device.type == "cpu":
        return rows
    return max(1, min(rows, TOKENS_PER_FORWARD // max(1, length), LOGITS_PER_FORWARD // max(1, num_logits)))


def split_by_token_budget(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """
    Splits rows into batches of similar length whose padded size stays within a token budget.

    Args:
        lengths (`list[int]`):
            Length of each row, in tokens.
        tokens_per_batch (`int`):
            Maximum of (number of rows) * (length of the longest row), in tokens, at least 1. A longer row forms its
            own batch.

    Returns:
        `list[list[int]]`: Row numbers. The longest rows come first. If the memory is too small, the first batch fails.

    Raises:
        ValueError: If `tokens_per_batch` is below 1.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"`tokens_per_batch` must be at least 1, got {tokens_per_batch}. Try 8192.")
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pad_right(
    rows: list[list[int]], pad_token_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Pads rows of token ids on the right to the length of the longest row.

    Args:
        rows (`list[list[int]]`):
            Token ids.
        pad_token_id (`int`):
            Id of the pad token.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Device of the tensors.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, length)`: The token ids, and an attention mask with
        1 for tokens and 0 for padding.
    """
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    input_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_token_id)  # (batch, length)
    lengths = torch.tensor([len(row) for row in rows])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()  # (batch, length)
    return input_ids.to(device), attention_mask.to(device)


def require_context(model: PreTrainedModel | PeftModel, lengths: list[int], first_row: int = 0) -> None:
    """
    Checks that every row fits into a model's context.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model that reads the rows.
        lengths (`list[int]`):
            Length of each row, in tokens.
        first_row (`int`, *optional*, defaults to `0`):
            Number of the first row, for the error message about a part of the rows.

    Raises:
        ValueError: If a row is longer than the context, see [`read_context`]. The message names the longest row.
    """
    context = read_context(model)
    longest = max(range(len(lengths)), key=lambda row: lengths[row])
    if context is not None and lengths[longest] > context:
        raise ValueError(
            f"Row {first_row + longest} has {lengths[longest]} tokens, more than the model's context of {context}. "
            "Truncate prompts with `max_length` where the function has it, or drop long rows."
        )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """
    Puts a model into evaluation mode without gradients. Afterwards each submodule returns to its own mode.

    Args:
        model (`torch.nn.Module`):
            Any model. Submodules that were in evaluation mode before stay in it, for example frozen parts of a model
            in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
