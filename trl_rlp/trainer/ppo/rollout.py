"""A rollout in training: its experience, split into micro-batches."""

from typing import NamedTuple

import torch
from accelerate import Accelerator

from trl_rlp.trainer.ppo.experience import Experience
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


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
        `torch.Tensor` of shape `(micro_batches, 2)`: The divisors of the policy loss and of the value loss.
    """
    masks = (experience.completion_mask, experience.value_mask)
    lengths = torch.stack([mask.sum(dim=1) for mask in masks], dim=1)  # (batch, 2)
    counts = lengths[micro_batches.to(lengths.device)].sum(dim=1).float()  # (micro_batches, 2)
    if args.loss_normalization == "micro_batch":
        return counts * args.gradient_accumulation_steps
    steps = counts.view(-1, args.gradient_accumulation_steps, 2).sum(dim=1)  # (steps, 2)
    steps = accelerator.reduce(steps, reduction="sum") / accelerator.num_processes
    return steps.repeat_interleave(args.gradient_accumulation_steps, dim=0)  # (micro_batches, 2)
