"""The multi-view term of Eq. 1 in a training run: what it reads of the model, its heads, its weight and its log."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from trl_rlp.losses.representation import RepresentationLoss
from trl_rlp.trainer.reward.heads_callback import HeadsCallback
from trl_rlp.trainer.reward.joint_forward import ForwardWithViews
from trl_rlp.trainer.reward.representation_log import RepresentationLog
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.score_head import score_layers


class RepresentationTerm:
    """
    Gives lambda L_M of a batch of views.

    Args:
        model (`nn.Module`):
            The reward model, not wrapped for distribution.
        pad_token_id (`int`):
            Its pad token.
        args ([`RLPRewardConfig`]):
            Settings of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Attributes:
        heads_callback ([`HeadsCallback`]): trains and saves the heads.
        log ([`RepresentationLog`]): what has been seen since the last log.

    Raises:
        ValueError: if the model has no score layer of a known name.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, args: RLPRewardConfig, accelerator: Accelerator):
        self._layers = score_layers(model)
        self._pad_token_id = pad_token_id
        self._args = args
        # Every process must start with the same heads, and the model's own draws must stay those of `method="none"`.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            heads = RepresentationLoss(
                self._layers[0].in_features,
                loss=args.representation_loss,
                estimator=args.mi_estimator,
                recipe=args.representation_recipe,
                kl_weight=args.kl_weight,
            )
        self.heads_callback = HeadsCallback(heads, args, accelerator)
        self.log = RepresentationLog()

    def forward(self, model: nn.Module, views: dict[str, torch.Tensor]) -> ForwardWithViews:
        """
        Gives what stands in for the model in TRL's loss.

        Args:
            model (`nn.Module`):
                The model as the trainer wrapped it.
            views (`dict[str, torch.Tensor]`):
                Token ids and mask of the views.

        Returns:
            [`ForwardWithViews`]
        """
        return ForwardWithViews(model, self._layers, views, self._pad_token_id, self._args.joint_forward)

    def __call__(self, hidden: torch.Tensor, instruction_ids: torch.Tensor, step: int) -> torch.Tensor:
        """
        Gives lambda L_M, or zero for a batch without two distinct instructions, which is counted.

        Args:
            hidden (`torch.Tensor` of shape `(2 * batch, hidden)`):
                Hidden states of the first views, then of the second.
            instruction_ids (`torch.Tensor` of shape `(batch,)`):
                Equal where the instruction is the same.
            step (`int`):
                Optimizer steps done, for the ramp of the KL weight.

        Returns:
            `torch.Tensor`: a scalar in nats.
        """
        if len(instruction_ids.unique()) < 2:
            self.log.skip()
            return hidden.new_zeros(())
        terms: dict[str, Any] = self.heads_callback.heads(
            *hidden.chunk(2), instruction_ids, kl_weight=self.kl_weight(step)
        )
        representation_loss = terms.pop("loss")
        self.log.add({**terms, "representation_loss": representation_loss})
        return self._args.representation_coef * representation_loss

    def kl_weight(self, step: int) -> float:
        """
        Gives the weight of the symmetric KL: its value, or the part of it that the ramp has reached.

        Args:
            step (`int`):
                Optimizer steps done.

        Returns:
            `float`: from 0 to the weight.
        """
        weight, ramp = self.heads_callback.heads.kl_weight, self._args.kl_ramp_steps
        return weight * min(1.0, step / ramp) if ramp else weight
