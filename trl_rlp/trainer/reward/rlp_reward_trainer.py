"""TRL's reward trainer, with the two terms that RLP adds to its loss."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import EvalPrediction, TrainOutput
from trl import RewardTrainer

from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.trainer.checkpoints import resolve_checkpoint
from trl_rlp.trainer.citation import PAPER
from trl_rlp.trainer.reward.methods import METHODS, VIEWS_FROM
from trl_rlp.trainer.reward.refinement_data import (
    add_groups,
    add_synthetic_pairs,
    build_collator,
    number_records,
    synthesize_pairs,
)
from trl_rlp.trainer.reward.refinement_inputs import RefinementInputs, require_pairs
from trl_rlp.trainer.reward.representation_term import RepresentationTerm
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.score_head import add_score_head, has_frozen_score_head


logger = get_logger(__name__)

EvaluationData = Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Dataset | IterableDataset]

VIEW_TENSORS = ("input_ids", "attention_mask", "instruction_ids")
"""What the collator brings of the views, each under this name after `view_`."""


class RLPRewardTrainer(RewardTrainer):
    r"""
    Trainer for reward models that learn on policy samples, without new labels; a drop-in for [`~trl.RewardTrainer`].

    $$L = -E_{D \cup \hat D} \log\sigma(r(x, y_w) - r(x, y_l)) + \lambda L_M$$

    `args.method` says which terms are there: with `none` it is TRL's trainer, step for step; `uml` adds L_M on pairs
    of policy samples; `spg` adds synthetic pairs D̂. The paper's retrained reward model starts where the first one
    started (pass the SFT model with a fresh head), not from the first one (a warm start: pass that).

    What it saves is a plain sequence classifier. The heads of L_M are held outside the model and only in checkpoints.
    `evaluate()` measures preference pairs alone, in every method.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train, as in [`~trl.RewardTrainer`].
        args ([`RLPRewardConfig`], *optional*):
            Configuration. If `None`, the default one.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Forms batches. Views and redrawn pairs need a [`SyntheticPreferenceCollator`], which
            is made here if none is given.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            D: human preferences in TRL's preference format. `spg` takes no stream.
        eval_dataset (*optional*):
            Preferences to evaluate on, as in [`~trl.RewardTrainer`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. One whose pad token is its EOS token hides EOS from the score: see
            [`ensure_pad_token`].
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics, \
        quantization_config (*optional*):
            As in [`~trl.RewardTrainer`].
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter. With a method other than `none` the score head is trained and saved with it, even if it does not
            say so.
        policy_samples ([`~datasets.Dataset`], *optional*):
            P: `prompt`, `completions`, `finished`, perhaps with groups. Needed by `uml`, and by `spg` without
            `synthetic_dataset`.
        equivalence (*optional*):
            Which outputs mean the same, see `trl_rlp.data.groups`. Needed where samples without groups must be
            grouped: by `spg` without `synthetic_dataset` and by `views_from="group"`.
        labeling_reward_model ([`~transformers.PreTrainedModel`], *optional*):
            r_φ of step 2, frozen, which picks y_w; never the model that is trained. It is released after use.
        labeling_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer. If not set, the one that was saved with it.
        synthetic_dataset ([`~datasets.Dataset`], *optional*):
            D̂, ready: the result of [`synthesize_preferences`] or any data in TRL's
            preference format.

    Raises:
        TypeError: if `args` is not an [`RLPRewardConfig`].
        ValueError: if the method lacks an argument, or one is given that it does not use.

    Reference:
        Eq. 1 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279).

    Example:

    ```python
    trainer = RLPRewardTrainer(
        model="sft_model",
        args=RLPRewardConfig("refined", method="uml"),
        train_dataset=preferences,
        policy_samples=samples,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "reward-trainer", "rlp"]
    _name = "RLP"
    _paper = PAPER

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RLPRewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: EvaluationData | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        *,
        policy_samples: Dataset | None = None,
        equivalence: Any | None = None,
        labeling_reward_model: PreTrainedModel | None = None,
        labeling_processing_class: PreTrainedTokenizerBase | None = None,
        synthetic_dataset: Dataset | None = None,
    ):
        args = _checked_args(args, model)
        inputs = RefinementInputs(
            policy_samples, equivalence, labeling_reward_model, labeling_processing_class, synthetic_dataset
        )
        inputs.require_fit(args, model, train_dataset, data_collator)
        require_pairs(train_dataset, processing_class)
        if peft_config is not None and args.method != "none":
            peft_config = add_score_head(peft_config)
        self.representation_term: RepresentationTerm | None = None
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics,
            callbacks,
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
            quantization_config,
            peft_config,
        )
        self._warn_of_lost_scores()
        self._add_terms(inputs, data_collator)

    def _warn_of_lost_scores(self) -> None:
        if self.processing_class.pad_token_id == self.processing_class.eos_token_id:
            logger.warning(
                f"The pad token is the EOS token ({self.processing_class.eos_token!r}), so the score is read before "
                "EOS and cannot tell a finished text. Call `ensure_pad_token(model, processing_class)` and pass both."
            )
        if is_peft_model(self.model) and has_frozen_score_head(self.model):
            logger.warning(
                "The score head is frozen and is not saved with the adapter, so scores are lost when it is loaded "
                'again. Set `task_type="SEQ_CLS"` or `modules_to_save=["score"]` in the PEFT configuration.'
            )

    def _add_terms(self, inputs: RefinementInputs, data_collator: DataCollator | None) -> None:
        """Brings the terms of the method into the data, the collator and the loss, once the trainer stands."""
        terms = METHODS[self.args.method]
        if not any(terms):
            return
        samples = inputs.policy_samples
        if terms.views and samples is not None and VIEWS_FROM[self.args.views_from]:
            samples = add_groups(samples, inputs.equivalence, self.args, self.accelerator)
        if terms.synthetic:
            synthetic = inputs.synthetic_dataset
            if synthetic is None:
                labeler = inputs.labeling_reward_model, inputs.labeling_processing_class
                synthetic = synthesize_pairs(samples, inputs.equivalence, *labeler, self.args, self.accelerator)
            self.train_dataset = add_synthetic_pairs(self.train_dataset, synthetic, self.processing_class, self.args)
        self.train_dataset = number_records(self.train_dataset)
        if data_collator is None:
            viewed = samples if terms.views else None
            self.data_collator = build_collator(viewed, self.processing_class, self.args)
        if isinstance(self.data_collator, SyntheticPreferenceCollator):
            self.add_callback(self.data_collator.epoch_callback)
        if terms.views:
            self.representation_term = RepresentationTerm(
                self.model, self.processing_class.pad_token_id, self.args, self.accelerator
            )
            self.add_callback(self.representation_term.heads_callback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        Gives TRL's preference loss and, in training by `uml`, adds lambda L_M.

        Args:
            model (`nn.Module`):
                The model as the trainer wrapped it.
            inputs (`dict[str, Any]`):
                A batch of the collator.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to give the model's outputs on the pairs too.
            num_items_in_batch (*optional*):
                Passed on to TRL, whose loss is a mean over the micro-batch.

        Returns:
            `torch.Tensor` or `tuple[torch.Tensor, Any]`: a scalar in nats, and the outputs if asked for.
        """
        term = self.representation_term
        views = {name: inputs.pop(f"view_{name}") for name in VIEW_TENSORS if f"view_{name}" in inputs}
        if term is None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        forward = term.forward(model, views)
        loss, outputs = super().compute_loss(forward, inputs, True, num_items_in_batch)
        term.log.add({"preference_loss": loss})
        loss = loss + term(forward.hidden, views["instruction_ids"], self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Logs what TRL logs and, in training by `uml`, each term of the loss and its diagnostics.

        Args:
            logs (`dict[str, float]`):
                Metrics by name.
            start_time (`float`, *optional*):
                Start of training.
        """
        if self.representation_term is not None and self.model.training:
            logs.update(self.representation_term.log.means(self.accelerator))
        super().log(logs, start_time)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains as [`~transformers.Trainer.train`]; a resumed run gets its heads and their optimizer back too.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint, or `True` for the last one in `args.output_dir`.
            trial (*optional*):
                Passed on.
            ignore_keys_for_eval (`list[str]`, *optional*):
                Passed on.

        Returns:
            `TrainOutput`: steps, mean loss and metrics.

        Raises:
            ValueError: if there is no checkpoint, or it holds no heads that fit.
        """
        term = self.representation_term
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if term is not None and checkpoint is not None:
            term.heads_callback.load(checkpoint)
        output = super().train(checkpoint, trial, ignore_keys_for_eval)
        if term is not None:
            term.log.warn_if_empty()
        return output


def _checked_args(args: RLPRewardConfig | None, model: str | PreTrainedModel | PeftModel) -> RLPRewardConfig:
    if args is None:
        name = model if isinstance(model, str) else model.name_or_path
        return RLPRewardConfig(f"{name.split('/')[-1]}-Reward")
    if not isinstance(args, RLPRewardConfig):
        raise TypeError(
            f"`args` must be an `RLPRewardConfig`, got `{type(args).__name__}`. It takes the same fields and more."
        )
    return args
