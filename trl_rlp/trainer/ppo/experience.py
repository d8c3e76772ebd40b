"""A rollout: the tensors that PPO trains on, and their split into micro-batches."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator

from trl_rlp.trainer.ppo.ppo_config import PPOConfig


@dataclass
class Experience:
    """
    The completions of a rollout on this process, with everything that the losses and the log need.

    All tensors are on one device. `length` is the length of the longest completion, and `prompt_length` is that of the
    longest prompt.
    """

    # Trajectory: what was sampled
    prompt_ids: torch.Tensor  # (batch, prompt_length), padded on the left
    prompt_mask: torch.Tensor  # (batch, prompt_length), 1 at tokens
    completion_ids: torch.Tensor  # (batch, length), padded on the right
    completion_mask: torch.Tensor  # (batch, length), boolean, True at tokens

    # Policy: what its loss needs
    old_log_probs: torch.Tensor  # (batch, length), nats, under the policy that sampled the tokens
    advantages: torch.Tensor  # (batch, length), whitened, 0 outside `completion_mask`
    importance_sampling_ratio: torch.Tensor | None  # (batch, length) or (batch, 1), with vLLM only

    # Value model: what its loss needs
    old_values: torch.Tensor  # (batch, length), units of reward, before the first step on the rollout
    returns: torch.Tensor  # (batch, length), units of reward
    value_mask: torch.Tensor  # (batch, length), boolean, `completion_mask` plus at most one position

    # Outcome: what the log needs
    scores: torch.Tensor  # (batch,), as added to the token rewards
    finished: torch.Tensor  # (batch,), boolean, whether the completion has a stop token
    kl: torch.Tensor  # (batch, length), nats, 0 outside `completion_mask`
    kl_rewards: torch.Tensor  # (batch, length), -kl_coef * kl

    def __len__(self) -> int:
        return len(self.completion_ids)

    def select(self, rows: torch.Tensor) -> Self:
        """
        Selects completions and removes the columns that are padding in all of them.

        Args:
            rows (`torch.Tensor` of shape `(rows,)`):
                Indices of completions.

        Returns:
            [`Experience`]: A copy of these completions.
        """
        first = int(self.prompt_mask[rows].any(dim=0).int().argmax())
        last = int(self.value_mask[rows].any(dim=0).sum())
        length = self.completion_ids.shape[1]
        selected: dict[str, Any] = {}
        for entry in fields(self):
            tensor = getattr(self, entry.name)
            if tensor is not None:
                tensor = tensor[rows]
                if entry.name in ("prompt_ids", "prompt_mask"):
                    tensor = tensor[:, first:]  # (rows, longest selected prompt)
                elif tensor.ndim == 2 and tensor.shape[1] == length:
                    tensor = tensor[:, :last]  # (rows, longest selected completion)
            selected[entry.name] = tensor
        return type(self)(**selected)

    def is_finite(self) -> torch.Tensor:
        """
        Checks the advantages and the returns. They depend on all scores, log-probabilities and values.

        Returns:
            `torch.Tensor`: A boolean scalar, `True` if no number is NaN or infinite.
        """
        return self.advantages.isfinite().all() & self.returns.isfinite().all()


class MicroBatch(NamedTuple):
    """
    One forward and backward pass of PPO.

    Args:
        experience ([`Experience`]):
            Some completions of the rollout.
        policy_normalizer (`torch.Tensor`):
            Scalar by which the summed policy loss is divided.
        value_normalizer (`torch.Tensor`):
            Scalar by which the summed value loss is divided.
    """

    experience: Experience
    policy_normalizer: torch.Tensor
    value_normalizer: torch.Tensor


class Rollout:
    """
    Splits a rollout into micro-batches. Each PPO epoch uses the whole rollout, in a new random order.

    The order is drawn with PyTorch's global CPU generator.

    Args:
        experience ([`Experience`]):
            The rollout of this process.
        args ([`PPOConfig`]):
            Configuration of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
    """

    def __init__(self, experience: Experience, args: PPOConfig, accelerator: Accelerator):
        self.experience = experience
        orders = torch.stack([torch.randperm(len(experience)) for _ in range(args.num_ppo_epochs)])  # (epochs, batch)
        self._micro_batches = orders.reshape(-1, args.per_device_train_batch_size)  # (micro-batches, rows)
        self._normalizers = compute_normalizers(experience, self._micro_batches, args, accelerator)
        self._num_dealt = 0

    @property
    def is_used_up(self) -> bool:
        """Whether all micro-batches have been used."""
        return self._num_dealt == len(self._micro_batches)

    def next_micro_batch(self) -> MicroBatch:
        """
        Returns the next micro-batch.

        Returns:
            [`MicroBatch`]: The micro-batch, without columns that are padding in all of its rows.

        Raises:
            IndexError: If the rollout is used up.
        """
        rows = self._micro_batches[self._num_dealt].to(self.experience.completion_ids.device)
        micro_batch = MicroBatch(self.experience.select(rows), *self._normalizers[self._num_dealt])
        self._num_dealt += 1
        return micro_batch


def compute_normalizers(
    experience: Experience, micro_batches: torch.Tensor, args: PPOConfig, accelerator: Accelerator
) -> torch.Tensor:
    """
    Computes the divisors of the summed losses of each micro-batch.

    The trainer sums the losses of the micro-batches of a step and averages over processes. The loss should be the mean
    over all tokens of the step. The divisor is therefore the number of tokens of the whole step on all processes,
    divided by the number of processes.

    Args:
        experience ([`Experience`]):
            The rollout of this process.
        micro_batches (`torch.Tensor` of shape `(micro_batches, rows)`):
            Indices of completions.
        args ([`PPOConfig`]):
            Provides `loss_normalization` and `gradient_accumulation_steps`.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Returns:
        `torch.Tensor` of shape `(micro_batches, 2)`: The divisors of the policy loss and of the value loss. Without
        any token, they are those of one token, and the loss is 0.
    """
    masks = (experience.completion_mask, experience.value_mask)
    lengths = torch.stack([mask.sum(dim=1) for mask in masks], dim=1)  # (batch, 2)
    counts = lengths[micro_batches.to(lengths.device)].sum(dim=1).float()  # (micro_batches, 2)
    if args.loss_normalization == "micro_batch":
        return counts.clamp(min=1) * args.gradient_accumulation_steps
    steps = counts.view(-1, args.gradient_accumulation_steps, 2).sum(dim=1)  # (steps, 2)
    steps = accelerator.reduce(steps, reduction="sum").clamp(min=1) / accelerator.num_processes
    return steps.repeat_interleave(args.gradient_accumulation_steps, dim=0)  # (micro_batches, 2)
