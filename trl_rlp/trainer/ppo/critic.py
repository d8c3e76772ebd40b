"""The value model of PPO: a sequence classifier that is read at every token."""

import copy

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from trl_rlp.trainer.score_head import score_layers


logger = logging.get_logger(__name__)


class Critic(nn.Module):
    """
    Gives the value of each state that a token of a completion is drawn in.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classifier with `num_labels=1` whose score layer reads every token (decoder-only models do).

    Raises:
        ValueError: if `num_labels` is not 1 or the model has no score layer of a known name.
    """

    def __init__(self, model: PreTrainedModel | PeftModel):
        super().__init__()
        if model.config.num_labels != 1:
            raise ValueError(
                f"`value_model` has `num_labels`={model.config.num_labels}, but a value is one number. Load it with "
                "`AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`."
            )
        self._layers = score_layers(model)
        self.model = model
        if model.config.get_text_config().pad_token_id is None:
            # The classifier pools its scores, which nobody reads here, and refuses batches without a pad token.
            model.config.get_text_config().pad_token_id = 0

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, num_tokens: int
    ) -> torch.Tensor:
        """
        Gives the values of the last tokens.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, length)`):
                Prompts, padded on the left, and completions, padded on the right.
            attention_mask (`torch.Tensor` of shape `(batch, length)`):
                1 where there is text.
            position_ids (`torch.Tensor` of shape `(batch, length)`):
                Position of each token in its text.
            num_tokens (`int`):
                Tokens of a completion, padding included.

        Returns:
            `torch.Tensor` of shape `(batch, num_tokens)`: V of the state before each token, in units of reward.

        Raises:
            ValueError: if the model pools before it scores.
        """
        scores = []
        handles = [layer.register_forward_hook(lambda _, __, output: scores.append(output)) for layer in self._layers]
        try:
            self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        if scores[-1].ndim != 3:
            raise ValueError(
                f"`value_model` is a `{type(self.model).__name__}`, which pools before it scores and so has no value "
                "for each token. Use a decoder-only classifier."
            )
        values = scores[-1].squeeze(-1)[:, -num_tokens - 1 : -1]  # (batch, num_tokens)
        return values.to(torch.float32, copy=True)  # FSDP wants no view


def init_value_model(
    init: str | None, policy: PreTrainedModel | PeftModel, reward_model: PreTrainedModel | None
) -> PreTrainedModel:
    """
    Makes a value model from the reward model or the policy, with a score head of zeros: all values start at 0.

    Args:
        init (`str`, *optional*):
            `"reward"`, `"policy"`, or `None` for the reward model if there is one.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy; its adapters are left out.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            The reward model, if it reads the policy's tokens; adapters are merged in.

    Returns:
        [`~transformers.PreTrainedModel`]: a copy, of the policy's dtype; it shares no weights with either.

    Raises:
        ValueError: if `"reward"` is asked for and there is no such reward model.
    """
    if init == "reward" and reward_model is None:
        raise ValueError(
            '`value_model_init`="reward", but there is no `reward_model` with the policy\'s tokenizer. Set '
            '`value_model_init="policy"` or pass `value_model`.'
        )
    if init != "policy" and reward_model is not None:
        model = copy.deepcopy(reward_model)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        model.requires_grad_(True)
        if model.dtype != policy.dtype and not getattr(model, "is_quantized", False):
            # Reward models are often kept in bf16, in which small steps of an optimizer are lost.
            model.to(policy.dtype)
    else:
        model = _classifier_of(policy)
    with torch.no_grad():
        for layer in score_layers(model):
            for parameter in layer.parameters():
                parameter.zero_()
    return model


def _classifier_of(policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    # Adapter layers hold the layer that they adapt under `base_layer`.
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in base.base_model.state_dict().items()
        if "lora_" not in name
    }
    report = model.base_model.load_state_dict(state, strict=False)
    if report.missing_keys:
        raise ValueError(
            f"The value model cannot start from the policy, a `{type(base).__name__}`: {report.missing_keys[0]} is "
            "missing. Pass `value_model`."
        )
    return model.to(base.device)
