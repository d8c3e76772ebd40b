"""The multi-view term of Eq. 1, separate from the trainer because only some methods have it."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from trl_rlp.data.score_inputs import find_score_layers, get_linear_layer
from trl_rlp.losses.representation import RepresentationLoss
from trl_rlp.trainer.reward.heads_callback import HeadsCallback
from trl_rlp.trainer.reward.joint_forward import JointForward
from trl_rlp.trainer.reward.representation_log import RepresentationLog
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.stream_passes import find_data_process


class RepresentationTerm:
    """
    Computes λ L_M for a batch of views.

    Args:
        model (`nn.Module`):
            The reward model before the trainer wraps it.
        pad_token_id (`int`):
            Id of the model's pad token.
        args ([`RLPRewardConfig`]):
            Configuration of the run.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Attributes:
        heads_callback ([`HeadsCallback`]):
            Callback that trains and saves the heads.
        log ([`RepresentationLog`]):
            Terms of the loss since the last log.

    Raises:
        ValueError: If the model has no score layer with a known name.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, args: RLPRewardConfig, accelerator: Accelerator):
        self._layers = find_score_layers(model)
        self._pad_token_id = pad_token_id
        self._args = args
        self._num_parts, self._part = find_data_process(accelerator)
        # All processes must start with the same heads. The model's random draws must stay those of `method="none"`.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            heads = RepresentationLoss(
                get_linear_layer(self._layers[0]).in_features,
                loss=args.representation_loss,
                estimator=args.mi_estimator,
                recipe=args.representation_recipe,
                kl_weight=args.kl_weight,
            )
        self.heads_callback = HeadsCallback(heads, args, accelerator)
        self.log = RepresentationLog()

    def build_forward(self, model: nn.Module, views: dict[str, torch.Tensor]) -> JointForward:
        """
        Builds the callable that replaces the model in TRL's loss.

        Args:
            model (`nn.Module`):
                The model as the trainer wrapped it.
            views (`dict[str, torch.Tensor]`):
                `input_ids` and `attention_mask` of the views.

        Returns:
            [`JointForward`]: The callable.
        """
        return JointForward(model, self._layers, views, self._pad_token_id, self._args.joint_forward)

    def __call__(self, hidden: torch.Tensor, prompt_indices: torch.Tensor, step: int) -> torch.Tensor:
        """
        Computes λ L_M.

        The result is zero for a batch with fewer than two distinct prompts. Such batches are counted in the log. The
        latents of each process are independent.

        Args:
            hidden (`torch.Tensor` of shape `(2 * batch, hidden)`):
                Hidden states of the first views, followed by those of the second views.
            prompt_indices (`torch.Tensor` of shape `(batch,)`):
                Number of the prompt of each pair of views.
            step (`int`):
                Optimizer steps so far, for the ramp of the KL weight.

        Returns:
            `torch.Tensor`: A scalar in nats.
        """
        hidden = hidden.to(self.heads_callback.accelerator.device)  # a model on several devices has it on its last one
        generator = self._draw_generator(hidden.device)  # also for a skipped batch, so that all processes draw it
        if len(prompt_indices.unique()) < 2:
            self.log.add_skipped()
            # A zero in the graph: the model's backward pass must have the same collective operations on all processes.
            return hidden.masked_fill(torch.ones_like(hidden, dtype=torch.bool), 0).sum()
        kl_weight = self.compute_kl_weight(step)
        terms: dict[str, Any] = self.heads_callback.heads(
            *hidden.chunk(2), prompt_indices, kl_weight=kl_weight, generator=generator
        )
        representation_loss = terms.pop("loss")
        self.log.add({**terms, "representation_loss": representation_loss})
        return self._args.representation_coef * representation_loss

    def _draw_generator(self, device: torch.device) -> torch.Generator | None:
        """
        Draws a generator of the latents of one batch. A single process uses torch's global one.

        All processes have equal global generators on the CPU. These must stay equal, because data orders may depend on
        them, and a checkpoint saves them.
        """
        if self._num_parts == 1:
            return None
        seed = int(torch.randint(2**62, ()))
        return torch.Generator(device).manual_seed(seed + self._part)

    def compute_kl_weight(self, step: int) -> float:
        """
        Computes the weight of the symmetric KL, which rises linearly from 0 over `kl_ramp_steps`.

        Args:
            step (`int`):
                Optimizer steps so far.

        Returns:
            `float`: Between 0 and the full weight.
        """
        weight, ramp_steps = self.heads_callback.heads.kl_weight, self._args.kl_ramp_steps
        return weight * min(1.0, step / ramp_steps) if ramp_steps else weight
