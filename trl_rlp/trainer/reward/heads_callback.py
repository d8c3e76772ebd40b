"""The heads of the multi-view loss during training: their own optimizer, and their own file in each checkpoint."""

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
SHAPING_FIELDS = ("representation_loss", "representation_recipe")


class HeadsCallback(TrainerCallback):
    """
    Holds the heads (means, deviations, critic) outside the model, in fp32, and trains them beside it.

    They step together with the model, by AdamW at a constant rate, on gradients that are averaged over the processes
    and clipped at `args.max_grad_norm`. They never enter the saved model; a checkpoint gets them as a file of its own.

    Args:
        heads (`RepresentationLoss`):
            The loss with its heads, equal on every process.
        args ([`RLPRewardConfig`]):
            Settings of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
    """

    def __init__(self, heads: RepresentationLoss, args: RLPRewardConfig, accelerator: Accelerator):
        self.heads = heads.float().to(accelerator.device)
        self.accelerator = accelerator
        self.settings = {name: vars(args)[name] for name in SHAPING_FIELDS}
        self.optimizer = torch.optim.AdamW(
            self.heads.parameters(),
            lr=args.heads_learning_rate,
            weight_decay=args.heads_weight_decay,
            fused=accelerator.device.type in FUSED_DEVICES,
        )

    def on_pre_optimizer_step(
        self, args: RLPRewardConfig, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Steps the heads on the gradients of the micro-batches since the last step."""
        if self.accelerator.num_processes > 1:
            average_gradients(self.heads.parameters(), self.accelerator)
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if args.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(self.heads.parameters(), args.max_grad_norm)
        if scaler is not None:
            # The step of the model's optimizer, which follows, updates the scale for both.
            scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def on_save(self, args: RLPRewardConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Writes the heads and their optimizer into the checkpoint that the trainer has just written."""
        if not args.should_save or args.save_only_model:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        contents = {
            "settings": self.settings,
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(contents, folder / HEADS_FILE)

    def load(self, checkpoint: str | Path) -> None:
        """
        Restores heads and optimizer from a checkpoint.

        Args:
            checkpoint (`str` or `Path`):
                Folder that the trainer wrote.

        Raises:
            ValueError: if the folder holds no heads, or heads of another loss.
        """
        path = Path(checkpoint) / HEADS_FILE
        if not path.is_file():
            raise ValueError(
                f"`resume_from_checkpoint`={str(checkpoint)!r} holds no {HEADS_FILE}, so it was not written by a run "
                "with this `method`. Pass the folder as `model` to start from its weights instead."
            )
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if contents["settings"] != self.settings:
            raise ValueError(
                f"`resume_from_checkpoint`={str(checkpoint)!r} was written with {contents['settings']}, this run has "
                f"{self.settings}. Resume with the same settings."
            )
        self.heads.load_state_dict(contents["heads"])
        self.optimizer.load_state_dict(contents["optimizer"])
