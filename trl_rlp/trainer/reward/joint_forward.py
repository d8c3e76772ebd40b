"""The forward pass over pairs and views, separate from the loss term because it does not know the loss."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from trl_rlp.data.score_inputs import capture_score_inputs, select_scored_states


def stack_rows(first: torch.Tensor, second: torch.Tensor, value: int) -> torch.Tensor:
    """
    Concatenates two padded batches and pads the shorter one to the length of the longer one.

    Args:
        first (`torch.Tensor` of shape `(first_batch, first_length)`):
            Rows padded on the right.
        second (`torch.Tensor` of shape `(second_batch, second_length)`):
            Rows padded on the right.
        value (`int`):
            Padding value.

    Returns:
        `torch.Tensor` of shape `(first_batch + second_batch, longer length)`: The rows of both batches.
    """
    length = max(first.shape[1], second.shape[1])
    return torch.cat([pad(rows, (0, length - rows.shape[1]), value=value) for rows in (first, second)])


class JointForward:
    """
    Runs a reward model on preference pairs and on views. It returns the outputs for the pairs and keeps the hidden
    states of the views.

    [`~trl.RewardTrainer.compute_loss`] gets an instance instead of the model and calls it once.

    Args:
        model (`nn.Module`):
            The model as the trainer wrapped it.
        layers (`list[nn.Module]`):
            Score layers of the model, from [`find_score_layers`].
        views (`dict[str, torch.Tensor]`):
            `input_ids` and `attention_mask` of shape `(rows, length)`, padded on the right.
        pad_token_id (`int`):
            Id of the pad token.
        is_joint (`bool`, *optional*, defaults to `True`):
            Whether pairs and views share one forward pass. If `False`, the views get a second pass, with less padding.

    Attributes:
        hidden (`torch.Tensor` of shape `(rows, hidden)`):
            The hidden state that the score of each view is computed from, with its gradient. It is set by the call.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[nn.Module],
        views: dict[str, torch.Tensor],
        pad_token_id: int,
        is_joint: bool = True,
    ):
        self.model, self.layers, self.views = model, layers, views
        self.pad_token_id, self.is_joint = pad_token_id, is_joint
        self.hidden: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> ModelOutput:
        """
        Returns the model's outputs for the pairs.

        Args:
            input_ids (`torch.Tensor` of shape `(2 * pairs, length)`):
                Token ids of the pairs.
            attention_mask (`torch.Tensor` of shape `(2 * pairs, length)`):
                1 for text and 0 for padding.
            inputs:
                Other arguments from TRL. The model gets them unchanged.

        Returns:
            `ModelOutput`: Its `logits` have shape `(2 * pairs, 1)`.
        """
        view_ids, view_mask = self.views["input_ids"], self.views["attention_mask"]
        # A compiled model takes the hooks of the pass that compiles it, so all passes must have the same ones.
        with capture_score_inputs(self.layers) as captured:
            if self.is_joint:
                joined_ids = stack_rows(input_ids, view_ids, self.pad_token_id)  # (2 * pairs + rows, length)
                joined_mask = stack_rows(attention_mask, view_mask, 0)
                outputs = self.model(input_ids=joined_ids, attention_mask=joined_mask, **inputs)
                outputs.logits = outputs.logits[: len(input_ids)]  # (2 * pairs, 1)
                view_ids = joined_ids[len(input_ids) :]  # (rows, length)
            else:
                outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
                self.model(input_ids=view_ids, attention_mask=view_mask, use_cache=False)
        self.hidden = select_scored_states(captured[-1][-len(view_ids) :], view_ids, self.pad_token_id)
        return outputs
