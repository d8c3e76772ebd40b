"""The heads of the multi-view loss in training, separate from the loss term because they have an optimizer."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from trl_rlp.losses.representation import RepresentationLoss
from trl_rlp.trainer.gradients import average_gradients
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


HEADS_FILE = "representation_heads.pt"
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Device types on which AdamW has a fused implementation."""

SETTINGS = ("representation_loss", "representation_recipe")
"""Fields of the configuration that decide the shape of the heads. A checkpoint must have the same values."""


class HeadsCallback(TrainerCallback):
    """
    Holds the heads (means, standard deviations, critic) outside the model, in fp32, and trains them with it.

    The heads take a step whenever the model does. Their optimizer is AdamW with a constant learning rate. Their
    gradients are averaged over processes and clipped at `args.max_grad_norm`. The heads are never part of the saved
    model. A checkpoint stores them in a separate file.

    Args:
        heads (`RepresentationLoss`):
            The loss with its heads, equal on every process.
        args ([`RLPRewardConfig`]):
            Configuration of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
    """

    def __init__(self, heads: RepresentationLoss, args: RLPRewardConfig, accelerator: Accelerator):
        self.heads = heads.float().to(accelerator.device)
        self.accelerator = accelerator
        self.settings = {name: vars(args)[name] for name in SETTINGS}
        self.optimizer = torch.optim.AdamW(
            self.heads.parameters(),
            lr=args.heads_learning_rate,
            weight_decay=args.heads_weight_decay,
            fused=accelerator.device.type in FUSED_DEVICES,
        )

    def on_pre_optimizer_step(
        self, args: RLPRewardConfig, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Updates the heads with the gradients of all micro-batches since the last step."""
        if self.accelerator.num_processes > 1:
            average_gradients(self.heads.parameters(), self.accelerator)
        if all(parameter.grad is None for parameter in self.heads.parameters()):
            return  # no micro-batch had L_M, and a gradient scaler refuses a step without gradients
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if args.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(self.heads.parameters(), args.max_grad_norm)
        if scaler is not None:
            # The model's optimizer steps next and updates the scale for both.
            scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, checkpoint: Path) -> None:
        """
        Saves the heads and their optimizer in a checkpoint.

        Args:
            checkpoint (`Path`):
                Folder of the checkpoint.
        """
        contents = {
            "settings": self.settings,
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(contents, checkpoint / HEADS_FILE)

    def load(self, checkpoint: str | Path) -> None:
        """
        Loads the heads and their optimizer from a checkpoint.

        Args:
            checkpoint (`str` or `Path`):
                Folder of the checkpoint.

        Raises:
            ValueError: If the folder contains no heads, or heads of another loss.
        """
        path = Path(checkpoint) / HEADS_FILE
        if not path.is_file():
            raise ValueError(
                f"`resume_from_checkpoint`={str(checkpoint)!r} contains no {HEADS_FILE}, so it was written with "
                "another `method` or with `save_only_model`. To start from its weights, pass the folder as `model`."
            )
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if contents["settings"] != self.settings:
            raise ValueError(
                f"`resume_from_checkpoint`={str(checkpoint)!r} was written with {contents['settings']}, but this run "
                f"has {self.settings}. Resume with the same settings."
            )
        self.heads.load_state_dict(contents["heads"])
        self.optimizer.load_state_dict(contents["optimizer"])
