"""The models of a PPO run, asked for numbers for each token of a rollout."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trl_rlp.trainer.ppo.completion_log_probs import accepts_position_ids, completion_log_probs, position_ids_from_mask
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


@dataclass
class Tokens:
    """
    Prompts with their completions.

    Args:
        ids (`torch.Tensor` of shape `(batch, length)`):
            Prompts, padded on the left, and completions, padded on the right.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where there is text.
        num_tokens (`int`):
            Tokens of a completion, padding included.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    num_tokens: int

    @classmethod
    def of(cls, batch: dict[str, torch.Tensor]) -> "Tokens":
        """
        Puts prompts and completions side by side.

        Args:
            batch (`dict[str, torch.Tensor]`):
                `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`.

        Returns:
            [`Tokens`].
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)  # (batch, length)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"].to(batch["prompt_mask"].dtype)], dim=1)
        # Padding is masked everywhere, but looked up, also by models that lack the policy's pad token.
        return cls(ids.masked_fill(mask == 0, 0), mask, batch["completion_ids"].shape[1])

    def seen_by(self, vocabulary_size: int) -> "Tokens":
        """
        Leaves out tokens that a model's embedding lacks, as a pad token that was added to the policy alone and drawn.

        Each is masked, and where it stood the token before it is read once more: what comes next is judged as if
        nothing stood between.

        Args:
            vocabulary_size (`int`):
                Rows of the embedding.

        Returns:
            [`Tokens`].
        """
        lacks = self.ids >= vocabulary_size  # (batch, length)
        places = torch.arange(lacks.shape[1], device=lacks.device).expand(lacks.shape)
        before = places.masked_fill(lacks, 0).cummax(dim=1).values
        ids = self.ids.gather(1, before)
        return Tokens(ids.masked_fill(ids >= vocabulary_size, 0), self.mask.masked_fill(lacks, 0), self.num_tokens)

    def parts(self, rows: int) -> Iterator["Tokens"]:
        """
        Cuts the batch.

        Args:
            rows (`int`):
                Completions of a part.

        Yields:
            [`Tokens`].
        """
        for ids, mask in zip(self.ids.split(rows), self.mask.split(rows), strict=True):
            yield Tokens(ids, mask, self.num_tokens)


class PPOModels:
    """
    Policy, reference and critic.

    Args:
        policy (`nn.Module`):
            Not wrapped for distribution.
        reference (`nn.Module`, *optional*):
            `None` for a PEFT policy without its adapters.
        critic (`nn.Module`):
            [`Critic`], possibly wrapped.
        args ([`RLPPPOConfig`]):
            Settings of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module | None,
        critic: nn.Module,
        args: RLPPPOConfig,
        accelerator: Accelerator,
    ):
        self.policy, self.reference, self.critic = policy, reference, critic
        self.args, self.accelerator = args, accelerator
        self._with_positions = accepts_position_ids(policy)
        self._vocabulary_size = _vocabulary_size(accelerator.unwrap_model(policy))
        self._value_vocabulary_size = _vocabulary_size(accelerator.unwrap_model(critic).model)
        self._ref_vocabulary_size = _vocabulary_size(accelerator.unwrap_model(reference or policy))

    def log_probs(self, model: nn.Module, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Gives log-probabilities and entropies, with gradients where they are on.

        Args:
            model (`nn.Module`):
                The policy, possibly wrapped, or the reference.
            tokens ([`Tokens`]):
                A batch.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch, num_tokens)`, in nats.
        """
        with self.accelerator.autocast():
            return completion_log_probs(
                model, tokens.ids, tokens.mask, tokens.num_tokens, self.args.temperature, self._with_positions
            )

    def values(self, tokens: Tokens) -> torch.Tensor:
        """
        Gives the critic's values, with gradients where they are on.

        Args:
            tokens ([`Tokens`]):
                A batch.

        Returns:
            `torch.Tensor` of shape `(batch, num_tokens)`, in units of reward.
        """
        tokens = self._seen_by(self._value_vocabulary_size, tokens)
        with self.accelerator.autocast():
            return self.critic(tokens.ids, tokens.mask, position_ids_from_mask(tokens.mask), tokens.num_tokens)

    @torch.no_grad()
    def judge(self, tokens: Tokens) -> dict[str, torch.Tensor]:
        """
        Gives what the three models say of a rollout, before any step on it.

        Args:
            tokens ([`Tokens`]):
                The rollout.

        Returns:
            `dict[str, torch.Tensor]` of shape `(batch, num_tokens)` each: `old_log_probs`, `entropies`,
            `ref_log_probs`, `old_values`.
        """
        parts: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("old_log_probs", "entropies", "ref_log_probs", "old_values")
        }
        was_training = self.critic.training
        self.critic.eval()
        for part in tokens.parts(self.args.local_rollout_forward_batch_size):
            log_probs, entropies = self.log_probs(self.policy, part)
            with self._reference() as reference:
                ref_log_probs, _ = self.log_probs(reference, self._seen_by(self._ref_vocabulary_size, part))
            # Of a token that it lacks the reference says nothing, so that there is no divergence.
            lacks = part.ids[:, -part.num_tokens :] >= self._ref_vocabulary_size
            ref_log_probs = log_probs.where(lacks, ref_log_probs)
            for name, tensor in zip(parts, (log_probs, entropies, ref_log_probs, self.values(part)), strict=True):
                parts[name].append(tensor)
        self.critic.train(was_training)
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def _seen_by(self, vocabulary_size: int, tokens: Tokens) -> Tokens:
        return tokens if vocabulary_size >= self._vocabulary_size else tokens.seen_by(vocabulary_size)

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        if self.reference is not None:
            yield self.reference
            return
        policy: PeftModel = self.accelerator.unwrap_model(self.policy)
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


def _vocabulary_size(model: PreTrainedModel | PeftModel) -> int:
    return model.config.get_text_config().vocab_size
