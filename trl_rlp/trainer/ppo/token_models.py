"""The models of a PPO run. They compute the log-probability and the value of each token."""

import contextlib
import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, Self

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trl_rlp.data.batching import eval_mode, limit_rows
from trl_rlp.data.score_inputs import find_score_layers
from trl_rlp.losses.log_probs import token_log_probs
from trl_rlp.trainer.frozen_weights import frozen, keep_requires_grad
from trl_rlp.trainer.ppo.fused_head import (
    build_fused_forward,
    fits_fused_head,
    fused_log_probs,
    has_plain_head,
    use_forward,
)
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.sharding import critic_autocast
from trl_rlp.trainer.score_head import score_in_fp32


@dataclass
class Tokens:
    """Prompts with their completions, as one batch of token ids."""

    ids: torch.Tensor  # (batch, prompt_length + length), prompts padded on the left, completions on the right
    mask: torch.Tensor  # (batch, prompt_length + length), 1 at tokens
    num_completion_tokens: int  # length of the padded completions

    def restrict_to(self, vocabulary_size: int) -> Self:
        """
        Masks tokens that are not in a model's embedding, such as a pad token that only the policy has.

        At a masked position, the model reads the previous token again. It then predicts the next token as if the
        masked token did not exist.

        Args:
            vocabulary_size (`int`):
                Number of rows of the embedding.

        Returns:
            [`Tokens`]: A batch of the same shape.
        """
        is_missing = self.ids >= vocabulary_size  # (batch, prompt_length + length)
        positions = torch.arange(is_missing.shape[1], device=is_missing.device).expand(is_missing.shape)
        previous = positions.masked_fill(is_missing, 0).cummax(dim=1).values
        ids = self.ids.gather(1, previous)
        ids = ids.masked_fill(ids >= vocabulary_size, 0)  # rows that begin with a missing token
        return type(self)(ids, self.mask.masked_fill(is_missing, 0), self.num_completion_tokens)

    def split(self, batch_size: int) -> Iterator[Self]:
        """
        Splits the batch into smaller batches.

        Args:
            batch_size (`int`):
                Maximum number of rows of a smaller batch.

        Yields:
            [`Tokens`]: The smaller batches, in order.
        """
        for ids, mask in zip(self.ids.split(batch_size), self.mask.split(batch_size), strict=True):
            yield type(self)(ids, mask, self.num_completion_tokens)


def join_tokens(
    prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, completion_ids: torch.Tensor, completion_mask: torch.Tensor
) -> Tokens:
    """
    Joins prompts and completions.

    Args:
        prompt_ids (`torch.Tensor` of shape `(batch, prompt_length)`):
            Prompts, padded on the left.
        prompt_mask (`torch.Tensor` of shape `(batch, prompt_length)`):
            1 at tokens.
        completion_ids (`torch.Tensor` of shape `(batch, length)`):
            Completions, padded on the right.
        completion_mask (`torch.Tensor` of shape `(batch, length)`):
            1 or `True` at tokens.

    Returns:
        [`Tokens`]: Padding is token 0, which every embedding has.
    """
    ids = torch.cat([prompt_ids, completion_ids], dim=1)  # (batch, prompt_length + length)
    mask = torch.cat([prompt_mask, completion_mask.to(prompt_mask.dtype)], dim=1)
    return Tokens(ids.masked_fill(mask == 0, 0), mask, completion_ids.shape[1])


class Critic(nn.Module):
    """
    Computes the value of the state before each completion token, with a sequence classifier.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The value model: a sequence classifier with `num_labels=1`. Its score layer must read every token, as in
            decoder-only classifiers.

    Raises:
        ValueError: If the model is a language model, `num_labels` is not 1, or it has no score layer with a known
            name.
    """

    def __init__(self, model: PreTrainedModel | PeftModel):
        super().__init__()
        if model.get_output_embeddings() is not None:
            raise ValueError(
                f"`value_model` is a `{type(model).__name__}`, a language model, but values come from a sequence "
                "classifier. Leave it at None, or load it with `AutoModelForSequenceClassification`."
            )
        if model.config.num_labels != 1:
            raise ValueError(
                f"`value_model` has `num_labels`={model.config.num_labels}, but a value is one number. Load it with "
                "`AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`."
            )
        self._layers = find_score_layers(model)
        self.model = model
        self._no_split_modules = model._no_split_modules  # the layers that FSDP shards one by one

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, num_tokens: int
    ) -> torch.Tensor:
        """
        Computes the values of the last tokens.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, length)`):
                Prompts, padded on the left, and completions, padded on the right.
            attention_mask (`torch.Tensor` of shape `(batch, length)`):
                1 at tokens.
            position_ids (`torch.Tensor` of shape `(batch, length)`):
                Position of each token in its text.
            num_tokens (`int`):
                Length of the padded completions.

        Returns:
            `torch.Tensor` of shape `(batch, num_tokens)`: Value of the state before each token, in units of reward.

        Raises:
            ValueError: If the model pools before it scores.
        """
        scores = []

        def record(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            scores.append(score_in_fp32(layer, inputs[0], output))

        handles = [layer.register_forward_hook(record) for layer in self._layers]
        config = self.model.config.get_text_config()
        pad_token_id = config.pad_token_id
        try:
            # The classifier pools its scores, and without a pad token it refuses batches. The scores are not used.
            config.pad_token_id = 0 if pad_token_id is None else pad_token_id
            self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        finally:
            config.pad_token_id = pad_token_id
            for handle in handles:
                handle.remove()
        if scores[-1].ndim != 3:
            raise ValueError(
                f"`value_model` is a `{type(self.model).__name__}`. It pools before it scores, so it has no value for "
                "each token. Use a decoder-only classifier."
            )
        values = scores[-1].squeeze(-1)[:, -num_tokens - 1 : -1]  # (batch, num_tokens)
        return values.to(torch.float32, copy=True)  # FSDP does not accept a view, and casts it to its own dtype


class TokenModels:
    """
    Policy, reference policy and critic of a run.

    Args:
        policy (`nn.Module`):
            Policy, not wrapped for distributed training.
        reference (`nn.Module`, *optional*):
            Reference policy. `None` if it is the policy without its adapters or with another adapter. It is changed
            only while it runs.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped for distributed training.
        args ([`PPOConfig`]):
            Configuration of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module | None,
        critic: nn.Module,
        args: PPOConfig,
        accelerator: Accelerator,
    ):
        self.policy, self.reference, self.critic = policy, reference, critic
        self.args, self.accelerator = args, accelerator
        self._accepts_position_ids = accepts_position_ids(policy)
        self._vocabulary_size = _vocabulary_size(accelerator.unwrap_model(policy))
        self._critic_vocabulary_size = _vocabulary_size(accelerator.unwrap_model(critic).model)
        # A compiled model is false if its class has no length, so `reference or policy` would fail.
        self._reference_vocabulary_size = _vocabulary_size(
            accelerator.unwrap_model(policy if reference is None else reference)
        )
        self._reference_head = self._copy_reference_head()
        self._are_heads_checked = self._fits_fused_head = self._is_policy_fused = False
        self._fused_reference_forward: MethodType | None = None

    @torch.no_grad()
    def evaluate_rollout(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Evaluates the tokens of a rollout with all three models, before the first optimizer step on it.

        Tokens that the reference policy's embedding does not have get zero KL.

        Args:
            tokens ([`Tokens`]):
                The rollout.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]` of shape `(batch, length)` each: Log-probabilities under
            the policy and under the reference policy, in nats, and values.
        """
        self._check_heads(tokens)
        parts = list(tokens.split(self._count_rows(tokens)))
        log_probs = torch.cat([self.log_probs(self.policy, part)[0] for part in parts])  # (batch, length)
        with self._reference_policy() as reference:
            known = [self._restrict(part, self._reference_vocabulary_size) for part in parts]
            ref_log_probs = torch.cat([self.log_probs(reference, part)[0] for part in known])  # (batch, length)
        with eval_mode(self.critic):
            values = torch.cat([self.values(part) for part in parts])  # (batch, length)
        is_missing = tokens.ids[:, -tokens.num_completion_tokens :] >= self._reference_vocabulary_size
        return log_probs, log_probs.where(is_missing, ref_log_probs), values

    def log_probs(self, model: nn.Module, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Computes log-probabilities and entropies of the completions.

        Args:
            model (`nn.Module`):
                The policy, possibly wrapped, or the reference policy.
            tokens ([`Tokens`]):
                A batch.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, length)`: Log-probabilities and entropies, in
            nats.
        """
        is_fused = self._is_policy_fused if model is not self.reference else self._fused_reference_forward is not None
        with self.accelerator.autocast():
            if is_fused:
                position_ids = position_ids_from_mask(tokens.mask) if self._accepts_position_ids else None
                return fused_log_probs(model, tokens.ids, tokens.mask, tokens.num_completion_tokens, position_ids)
            return completion_log_probs(
                model,
                tokens.ids,
                tokens.mask,
                tokens.num_completion_tokens,
                self.args.temperature,
                self._accepts_position_ids,
            )

    def values(self, tokens: Tokens) -> torch.Tensor:
        """
        Computes the critic's values of the completions.

        Args:
            tokens ([`Tokens`]):
                A batch.

        Returns:
            `torch.Tensor` of shape `(batch, length)`: Values, in units of reward.
        """
        tokens = self._restrict(tokens, self._critic_vocabulary_size)
        position_ids = position_ids_from_mask(tokens.mask)
        with self.accelerator.autocast(), critic_autocast(self.accelerator):
            values = self.critic(tokens.ids, tokens.mask, position_ids, tokens.num_completion_tokens)
        return values.float()  # FSDP2 in bf16 casts outputs to bf16

    def _check_heads(self, tokens: Tokens) -> None:
        """Finds out which models can use TRL's fused LM head. At first, all processes run them on a few tokens."""
        if prefers_fused_head(self.accelerator.device) and not self._are_heads_checked:
            self._run_head_checks(tokens)
            self._are_heads_checked = True
        # An evaluation may come before the training that shards the policy.
        self._is_policy_fused = self._fits_fused_head and has_plain_head(self.policy)

    def _run_head_checks(self, tokens: Tokens) -> None:
        first = tokens.ids.shape[1] - tokens.num_completion_tokens
        few = slice(max(0, first - 4), first)
        prompt = tokens.ids[:1, few], tokens.mask[:1, few]  # (1, 4) each
        with self.accelerator.autocast():
            self._fits_fused_head = has_plain_head(self.policy) and fits_fused_head(self.policy, *prompt)
            if self.reference is None or not has_plain_head(self.reference):
                return
            known = self._restrict(Tokens(*prompt, num_completion_tokens=0), self._reference_vocabulary_size)
            with frozen(self.reference):
                fits = fits_fused_head(self.reference, known.ids, known.mask)
        if fits:
            settings = self.args.temperature, self.args.cast_lm_head_to_fp32
            self._fused_reference_forward = build_fused_forward(self.reference, *settings)

    def _count_rows(self, tokens: Tokens) -> int:
        """Returns the number of rows of a pass. Processes with sharded models need the same number of passes."""
        rows, device = self.args.local_rollout_forward_batch_size, self.accelerator.device
        if device.type == "cpu":
            return rows
        sizes = torch.tensor([[tokens.ids.shape[1], tokens.num_completion_tokens]], device=device)
        length, num_tokens = self.accelerator.gather(sizes).amax(dim=0).tolist()
        is_fused = self._is_policy_fused and (self.reference is None or self._fused_reference_forward is not None)
        return limit_rows(rows, length, 0 if is_fused else num_tokens * self._vocabulary_size, device)

    def _restrict(self, tokens: Tokens, vocabulary_size: int) -> Tokens:
        return tokens if vocabulary_size >= self._vocabulary_size else tokens.restrict_to(vocabulary_size)

    @contextlib.contextmanager
    def _reference_policy(self) -> Iterator[Any]:
        if self.reference is not None:
            fused = use_forward(self.reference, self._fused_reference_forward)
            with self._reference_head_in_fp32(), frozen(self.reference), fused:
                yield self.reference
            return
        policy: PeftModel = self.accelerator.unwrap_model(self.policy, keep_torch_compile=False)
        with keep_requires_grad(policy):
            if self.args.ref_adapter_name is None:
                with policy.disable_adapter():
                    yield self.policy
                return
            active = policy.active_adapter
            policy.set_adapter(self.args.ref_adapter_name)
            try:
                yield self.policy
            finally:
                policy.set_adapter(active)

    def _copy_reference_head(self) -> nn.Module | None:
        """Copies the reference policy's LM head in fp32, because an embedding that is tied to it keeps its dtype."""
        if self.reference is None or not self.args.cast_lm_head_to_fp32:
            return None
        head = self.accelerator.unwrap_model(self.reference, keep_torch_compile=False).get_output_embeddings()
        head = copy.deepcopy(head).float()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        return head

    @contextlib.contextmanager
    def _reference_head_in_fp32(self) -> Iterator[None]:
        if self._reference_head is None:
            yield
            return
        reference = self.accelerator.unwrap_model(self.reference, keep_torch_compile=False)
        head = reference.get_output_embeddings()
        reference.set_output_embeddings(self._reference_head)
        try:
            yield
        finally:
            reference.set_output_embeddings(head)


def prefers_fused_head(device: torch.device) -> bool:
    """
    Checks whether log-probabilities are computed with TRL's fused LM head where a model allows it.

    Args:
        device (`torch.device`):
            Device of the run.

    Returns:
        `bool`: `True` on an accelerator, where logits of the whole vocabulary would fill the memory.
    """
    return device.type != "cpu"


def completion_log_probs(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_tokens: int,
    temperature: float,
    with_position_ids: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes the log-probability and the entropy of each completion token. No logits of prompt tokens are computed.

    Args:
        model (`nn.Module`):
            Causal LM, possibly wrapped for distributed training.
        input_ids (`torch.Tensor` of shape `(batch, length)`):
            Prompts, padded on the left, and completions, padded on the right.
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 at tokens.
        num_tokens (`int`):
            Length of the padded completions, less than `length`.
        temperature (`float`):
            The logits are divided by it.
        with_position_ids (`bool`, *optional*, defaults to `True`):
            Whether to pass `position_ids`, see [`accepts_position_ids`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, num_tokens)`: Log-probabilities and entropies, in
        nats. They are undefined at padding.
    """
    length = input_ids.shape[1]
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **({"position_ids": position_ids_from_mask(attention_mask)} if with_position_ids else {}),
        # Indices are passed instead of a number, because slicing would copy the gradient.
        logits_to_keep=torch.arange(length - num_tokens - 1, length - 1, device=input_ids.device),
        use_cache=False,
    ).logits  # (batch, num_tokens, vocabulary)
    return token_log_probs(logits, input_ids[:, -num_tokens:], temperature)


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Computes the position of each token in its text. Left padding does not shift the positions.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 at tokens.

    Returns:
        `torch.Tensor` of shape `(batch, length)`: Positions from 0. Left padding has position 0.
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def accepts_position_ids(model: nn.Module) -> bool:
    """
    Checks whether a model accepts `position_ids`. Other models have no positions or derive them from the mask.

    Args:
        model (`nn.Module`):
            Model, not wrapped for distributed training.

    Returns:
        `bool`: Whether its `forward` has the argument.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "position_ids" in inspect.signature(base.forward).parameters


def _vocabulary_size(model: PreTrainedModel | PeftModel) -> int:
    return model.config.get_text_config().vocab_size
