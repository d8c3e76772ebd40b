"""The guard against NaN and infinity: it skips rollouts and optimizer steps, and stops a run that does not recover."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn

from trl_rlp.trainer.checkpoints import last_checkpoint
from trl_rlp.trainer.ppo.experience import Experience
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState


logger = get_logger(__name__)

MAX_BAD_IN_A_ROW = 3


class FiniteGuard:
    """
    Decides whether a rollout, and each optimizer step on it, is used or skipped. All processes decide together.

    Args:
        state ([`PPOState`]):
            Skipped steps are counted here.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
        output_dir (`str`):
            Folder of the checkpoints. The error message names the last one.

    Attributes:
        is_good_rollout (`bool`):
            Whether the current rollout is finite on all processes.
    """

    def __init__(self, state: PPOState, accelerator: Accelerator, output_dir: str):
        self.state, self.accelerator, self.output_dir = state, accelerator, output_dir
        self.is_good_rollout, self._are_losses_finite = True, True

    def check_rollout(self, experience: Experience) -> bool:
        """
        Checks a rollout. All processes must call this.

        Args:
            experience ([`Experience`]):
                The rollout of this process.

        Returns:
            `bool`: Whether the rollout is finite on all processes. If not, all steps on it are skipped.

        Raises:
            RuntimeError: If this is the third bad rollout or step in a row.
        """
        self.is_good_rollout = self._everywhere(bool(experience.is_finite()))
        if not self.is_good_rollout:
            self._count_bad("a rollout's scores, log-probabilities or values")
        return self.is_good_rollout

    def check_loss(self, loss: torch.Tensor) -> bool:
        """
        Checks the loss of a micro-batch on this process.

        Args:
            loss (`torch.Tensor`):
                Scalar.

        Returns:
            `bool`: Whether it is finite.
        """
        is_finite = bool(loss.isfinite())
        self._are_losses_finite &= is_finite
        return is_finite

    def check_step(self, modules: Sequence[nn.Module]) -> bool:
        """
        Checks losses and gradients before an optimizer step. If one is not finite, drops all gradients of the step, so
        that the optimizers skip it. All processes must call this.

        Args:
            modules (`Sequence[nn.Module]`):
                Modules with the gradients of the step.

        Returns:
            `bool`: Whether the step may be taken.

        Raises:
            RuntimeError: If this is the third bad rollout or step in a row.
        """
        is_good = self.is_good_rollout and self._are_gradients_good(modules)
        self._are_losses_finite = True
        if is_good:
            self.state.bad_in_a_row = 0
            return True
        for module in modules:
            drop_gradients(module)
        self.state.skipped_steps += 1
        if self.is_good_rollout:  # a bad rollout has been counted already
            self._count_bad("the loss or its gradient")
        return False

    def _are_gradients_good(self, modules: Sequence[nn.Module]) -> bool:
        gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
        # The norm reads each gradient once. With sharded gradients, it is a collective operation of all processes.
        is_finite = bool(nn.utils.get_total_norm(gradients).isfinite())
        return self._everywhere(is_finite and self._are_losses_finite)

    def _everywhere(self, is_good: bool) -> bool:
        num_bad = torch.tensor(float(not is_good), device=self.accelerator.device)
        return not bool(self.accelerator.reduce(num_bad, reduction="sum").item())

    def _count_bad(self, what: str) -> None:
        self.state.bad_in_a_row += 1
        logger.warning(
            f"{what[0].upper()}{what[1:]} are not finite (rollout {self.state.rollouts}). The step is skipped."
        )
        if self.state.bad_in_a_row >= MAX_BAD_IN_A_ROW:
            checkpoint = last_checkpoint(self.output_dir)
            raise RuntimeError(
                f"{MAX_BAD_IN_A_ROW} times in a row {what} were not finite. Resume from the last good checkpoint "
                f"({checkpoint or 'none yet'}) with a lower `learning_rate`, or check the reward functions."
            )


def drop_gradients(module: nn.Module) -> None:
    """
    Sets the gradients of a module to `None`, so that optimizers skip its parameters.

    Gradients of 0 would still change the parameters, through the momenta.

    Args:
        module (`nn.Module`):
            Changed in place.
    """
    for parameter in module.parameters():
        parameter.grad = None
