"""What stands in for the model in TRL's loss: one pass over pairs and views, of which TRL sees the pairs."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from trl_rlp.trainer.score_head import capture_score_inputs, select_scored_states


def stack_rows(first: torch.Tensor, second: torch.Tensor, value: int) -> torch.Tensor:
    """
    Puts two padded batches below each other.

    Args:
        first (`torch.Tensor` of shape `(first_batch, first_length)`):
            Padded on the right.
        second (`torch.Tensor` of shape `(second_batch, second_length)`):
            Padded on the right.
        value (`int`):
            What the shorter one is filled up with.

    Returns:
        `torch.Tensor` of shape `(first_batch + second_batch, longer length)`.
    """
    length = max(first.shape[1], second.shape[1])
    return torch.cat([pad(rows, (0, length - rows.shape[1]), value=value) for rows in (first, second)])


class ForwardWithViews:
    """
    Runs a reward model on preference pairs and on views, gives the outputs of the pairs, keeps the views' states.

    An instance is passed to [`~trl.RewardTrainer.compute_loss`] in place of the model, which calls it once.

    Args:
        model (`nn.Module`):
            The model as the trainer wrapped it.
        layers (`list[nn.Linear]`):
            Its score layers, see [`score_layers`].
        views (`dict[str, torch.Tensor]`):
            `input_ids` and `attention_mask` of shape `(rows, length)`, padded on the right.
        pad_token_id (`int`):
            The pad token.
        joint (`bool`, *optional*, defaults to `True`):
            Whether one forward pass holds both. Else the views get a second one, with less padding.

    Attributes:
        hidden (`torch.Tensor` of shape `(rows, hidden)`):
            After the call: the hidden state that the score of each view is read from, with its gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[nn.Linear],
        views: dict[str, torch.Tensor],
        pad_token_id: int,
        joint: bool = True,
    ):
        self.model, self.layers, self.views = model, layers, views
        self.pad_token_id, self.joint = pad_token_id, joint
        self.hidden: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> ModelOutput:
        """
        Gives the model's outputs on the pairs.

        Args:
            input_ids (`torch.Tensor` of shape `(2 * pairs, length)`):
                Token ids of the pairs.
            attention_mask (`torch.Tensor` of shape `(2 * pairs, length)`):
                1 where there is text.
            inputs:
                What else TRL hands to the model, passed on as it is.

        Returns:
            `ModelOutput`: `logits` of shape `(2 * pairs, 1)`.
        """
        if not self.joint:
            outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
            self._read_views(self.views["input_ids"], self.views["attention_mask"], 0, use_cache=False)
            return outputs
        joined_ids = stack_rows(input_ids, self.views["input_ids"], self.pad_token_id)  # (2 * pairs + rows, length)
        joined_mask = stack_rows(attention_mask, self.views["attention_mask"], 0)
        outputs = self._read_views(joined_ids, joined_mask, len(input_ids), **inputs)
        outputs.logits = outputs.logits[: len(input_ids)]  # (2 * pairs, 1)
        return outputs

    def _read_views(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, first_view: int, **inputs: Any):
        with capture_score_inputs(self.layers) as captured:
            outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        self.hidden = select_scored_states(captured[-1][first_view:], input_ids[first_view:], self.pad_token_id)
        return outputs
