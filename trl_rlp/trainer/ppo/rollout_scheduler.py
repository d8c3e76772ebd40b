"""A learning-rate schedule that moves once a rollout."""

from typing import Any

from torch.optim.lr_scheduler import LRScheduler


class RolloutScheduler:
    """
    Steps a schedule every so many optimizer steps, so that all steps on one rollout have one rate.

    Args:
        scheduler (`torch.optim.lr_scheduler.LRScheduler`):
            Counts rollouts.
        steps_per_rollout (`int`):
            Optimizer steps of a rollout.
    """

    def __init__(self, scheduler: LRScheduler, steps_per_rollout: int):
        self.scheduler, self.steps_per_rollout = scheduler, steps_per_rollout
        self.steps = 0

    @property
    def base_lrs(self) -> list[float]:
        """Rates that the schedule starts from, one a parameter group."""
        return self.scheduler.base_lrs

    def get_last_lr(self) -> list[float]:
        """Gives the current rate of each parameter group."""
        return self.scheduler.get_last_lr()

    def step(self) -> None:
        """Counts an optimizer step."""
        self.steps += 1
        if self.steps % self.steps_per_rollout == 0:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Gives what a checkpoint needs."""
        return {"steps": self.steps, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Takes up where a checkpoint was.

        Args:
            state (`dict`):
                What `state_dict` gave.
        """
        self.steps = state["steps"]
        self.scheduler.load_state_dict(state["scheduler"])
