"""One rollout of PPO: completions with their advantages, dealt out in micro-batches."""

import torch
from accelerate import Accelerator

from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


class Rollout:
    """
    Deals out a rollout: in each PPO epoch all of it, in a new random order, a micro-batch at a time.

    The order comes from PyTorch's global generator of the CPU.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            Each of shape `(batch, ...)`: `prompt_ids`, `prompt_mask` (padded on the left), `completion_ids` and what
            belongs to the completions' tokens (padded on the right), among it `completion_mask` and `value_mask`.
        args ([`RLPPPOConfig`]):
            Settings of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], args: RLPPPOConfig, accelerator: Accelerator):
        self.tensors = tensors
        size = len(tensors["completion_ids"])
        orders = torch.stack([torch.randperm(size) for _ in range(args.num_ppo_epochs)])  # (epochs, batch)
        self._micro_batches = orders.reshape(-1, args.per_device_train_batch_size)  # (micro-batches, rows)
        self._normalizers = _normalizers(tensors, self._micro_batches, args, accelerator)
        self._taken = 0

    @property
    def is_used_up(self) -> bool:
        """Whether all passes over the rollout are done."""
        return self._taken == len(self._micro_batches)

    def take(self) -> dict[str, torch.Tensor]:
        """
        Gives the next micro-batch.

        Returns:
            `dict[str, torch.Tensor]`: rows of the tensors, without columns that are padding in all of them, and
            `normalizers` of shape `(2,)`: what to divide the sums of policy and value losses by.
        """
        rows = self._micro_batches[self._taken].to(self.tensors["completion_ids"].device)
        batch = _trimmed({name: tensor[rows] for name, tensor in self.tensors.items()})
        batch["normalizers"] = self._normalizers[self._taken]
        self._taken += 1
        return batch


def _normalizers(
    tensors: dict[str, torch.Tensor], micro_batches: torch.Tensor, args: RLPPPOConfig, accelerator: Accelerator
) -> torch.Tensor:
    """
    Tokens that the losses of each micro-batch are divided by, for policy and value: `(micro-batches, 2)`.

    The trainer adds up the micro-batches of a step and averages over processes. Divided by the tokens of the whole
    step on all processes over the number of processes, the sum is the mean over all tokens of the step.
    """
    lengths = torch.stack(
        [tensors[name].sum(dim=1) for name in ("completion_mask", "value_mask")], dim=1
    )  # (batch, 2)
    counts = lengths[micro_batches.to(lengths.device)].sum(dim=1).float()  # (micro-batches, 2)
    if args.loss_normalization == "micro_batch":
        return counts * args.gradient_accumulation_steps
    steps = counts.view(-1, args.gradient_accumulation_steps, 2).sum(dim=1)  # (steps, 2)
    steps = accelerator.reduce(steps, reduction="sum") / accelerator.num_processes
    return steps.repeat_interleave(args.gradient_accumulation_steps, dim=0)  # (micro-batches, 2)


def _trimmed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = int(batch["prompt_mask"].any(dim=0).int().argmax())
    last = int(batch["value_mask"].any(dim=0).sum())
    length = batch["completion_ids"].shape[1]
    trimmed = {}
    for name, tensor in batch.items():
        if name in ("prompt_ids", "prompt_mask"):
            trimmed[name] = tensor[:, first:]
        else:
            trimmed[name] = tensor[:, :last] if tensor.ndim == 2 and tensor.shape[1] == length else tensor
    return trimmed
