"""TRL's reward trainer with the two terms that RLP adds to its loss."""

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
from trl_rlp.data.validation import remove_format
from trl_rlp.trainer.checkpoints import no_extra_step, open_checkpoint, resolve_checkpoint
from trl_rlp.trainer.citation import PAPER
from trl_rlp.trainer.frozen_weights import require_trainable
from trl_rlp.trainer.model_card import (
    ModelCardMixin,
    ModelDescription,
    count_rows,
    find_hub_datasets,
    has_messages,
)
from trl_rlp.trainer.reward.refinement_data import (
    HUMAN_COLUMNS,
    add_groups,
    add_record_numbers,
    add_synthetic_pairs,
    build_collator,
    drop_repeated_tokens,
    report_too_long_pairs,
    select_columns,
    synthesize_pairs,
)
from trl_rlp.trainer.reward.refinement_inputs import RefinementInputs, check_preferences, describe_synthesis
from trl_rlp.trainer.reward.representation_term import RepresentationTerm
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.stream_passes import find_stream_position
from trl_rlp.trainer.saved_args import redact_saved_args
from trl_rlp.trainer.score_head import add_score_head, has_frozen_score_head, keep_trained_head_in_fp32
from trl_rlp.trainer.tracking import PreferenceTableCallback


logger = get_logger(__name__)

EvaluationData = Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Dataset | IterableDataset]

VIEW_TENSORS = ("input_ids", "attention_mask", "prompt_indices")
"""Tensors of the views in a batch. The collator adds `view_` before each name."""

SUMMARY = (
    "A reward model: a sequence classifier with one label. It scores a completion of a prompt, and higher is better. "
    "It was trained "
)
SUMMARIES = {
    "none": "on human preferences, with the loss of `trl.RewardTrainer`.",
    "uml": "on human preferences, with a multi-view loss on completions of a policy (RLP-UML).",
    "spg": "on human preferences and on synthetic preferences between completions of a policy (RLP-SPG).",
    "uml+spg": "on human preferences and on synthetic preferences between completions of a policy, with a multi-view "
    "loss on these completions (RLP-UML and RLP-SPG).",
}
"""What a model card says about each method."""


CARD_SETTINGS = ("method", "representation_loss", "representation_coef", "synthetic_share", "max_length")
"""Fields of RLPRewardConfig that a model card lists, if they are set and used."""


class RLPRewardTrainer(ModelCardMixin, RewardTrainer):
    r"""
    Trainer for reward models that learns from human preferences and policy samples, without new labels.

    $$L = -E_{D \cup \hat D} \log\sigma(r(x, y_w) - r(x, y_l)) + \lambda L_M$$

    It is a drop-in replacement for [`~trl.RewardTrainer`]. `args.method` selects the terms:
    - `none`: No additional terms. The trainer is the same as TRL's, step for step, with two exceptions: the score head
      of an adapter on a model in half precision is trained in fp32, and an EOS or BOS that the tokenizer adds to that
      of the text is removed.
    - `uml`: Adds L_M on pairs of policy samples.
    - `spg`: Adds synthetic pairs D̂.
    - `uml+spg`: Adds both.

    In the paper, the retrained reward model starts from the same weights as the first one. For this, pass the SFT
    model with a new head. To start from the first reward model instead (a warm start), pass that model.

    The saved model is a plain sequence classifier. The heads of L_M are outside the model and are saved only in
    checkpoints. `evaluate()` measures only preference pairs, with every method.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train, as in [`~trl.RewardTrainer`].
        args ([`RLPRewardConfig`], *optional*):
            Configuration. If `None`, all fields have their default values.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Collator for the batches. Views and redrawn pairs need a [`SyntheticPreferenceCollator`], which is built if
            this is not set.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Human preferences D in TRL's preference format. `spg` does not support an `IterableDataset`.
        eval_dataset (*optional*):
            Preferences to evaluate on, as in [`~trl.RewardTrainer`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. If its pad token is its EOS token, the score cannot depend on EOS. See [`ensure_pad_token`].
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics, \
        quantization_config (*optional*):
            As in [`~trl.RewardTrainer`].
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of an adapter. With any method but `none`, the score head is trained and saved with the
            adapter, even if the configuration does not include it.
        policy_samples ([`~datasets.Dataset`], *optional*):
            Policy samples P with the columns `prompt`, `completions` and `finished`, with or without groups. Required
            by `uml`, and by `spg` without `synthetic_dataset`.
        equivalence (*optional*):
            Decides which completions have the same meaning, see `trl_rlp.data.groups`. Required for samples without
            groups by `spg` without `synthetic_dataset`, and by `views_from="group"`.
        labeling_reward_model ([`~transformers.PreTrainedModel`], *optional*):
            The frozen reward model r_φ of step 2, which selects y_w. It must not be the model to train. The trainer
            keeps no reference to it.
        labeling_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of `labeling_reward_model`. If `None`, it is loaded from the model's folder.
        synthetic_dataset ([`~datasets.Dataset`], *optional*):
            Ready synthetic preferences D̂: the result of [`synthesize_preferences`], or any dataset in TRL's preference
            format.

    Raises:
        TypeError: If `args` is not an [`RLPRewardConfig`], or an argument has the wrong type.
        ValueError: If an argument that the method needs is missing, an argument is not used by the method, all weights
            of the model are frozen, or all pairs are longer than `args.max_length`.

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

    representation_term: RepresentationTerm | None = None

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
        args = _resolve_args(args, model)
        if args.method != "none":
            train_dataset = remove_format(train_dataset)
        policy_samples, synthetic_dataset = remove_format(policy_samples), remove_format(synthetic_dataset)
        inputs = RefinementInputs(
            policy_samples, equivalence, labeling_reward_model, labeling_processing_class, synthetic_dataset
        )
        inputs.check(args, model, train_dataset, data_collator)
        check_preferences(train_dataset, processing_class, eval_dataset, args.eos_token)
        self._prepare_card(args, train_dataset, policy_samples, synthetic_dataset)
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
            _resolve_peft_config(peft_config, model, args),
        )
        self._prepare_score_head()
        self._add_terms(inputs, data_collator)

    def _prepare_card(
        self, args: RLPRewardConfig, train_dataset: Dataset | IterableDataset | None, *others: Dataset | None
    ) -> None:
        """Keeps what the model card says about the data. Tokenization and the mixture with D̂ lose it."""
        if args.method == "none":
            self._take_card_names(RewardTrainer)
        self._is_chat = has_messages(train_dataset)
        names = [name for dataset in (train_dataset, *others) for name in find_hub_datasets(dataset)]
        self._hub_datasets = sorted(set(names))

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: RLPRewardConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """
        Counts the pairs that TRL leaves out. Keeps one EOS at the end of text, as scoring does: TRL appends it, and
        some tokenizers append it again.
        """
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if isinstance(dataset, Dataset):
            name = "train_dataset" if dataset_name == "train" else "eval_dataset"
            report_too_long_pairs(len(dataset), len(prepared), args.max_length, name)
        return drop_repeated_tokens(prepared, processing_class, args.dataset_num_proc)

    def _prepare_score_head(self) -> None:
        """Keeps the head of a model with an adapter in fp32. Warns about a head that cannot give the right scores."""
        keep_trained_head_in_fp32(self.model)
        if self.processing_class.pad_token_id == self.processing_class.eos_token_id:
            logger.warning(
                f"The pad token is the EOS token ({self.processing_class.eos_token!r}), so the score is read before "
                "EOS and cannot distinguish finished texts from unfinished ones. Call "
                "`ensure_pad_token(model, processing_class)` and pass both."
            )
        if is_peft_model(self.model) and has_frozen_score_head(self.model):
            logger.warning(
                "The score head is frozen and is not saved with the adapter, so a loaded adapter gives other scores. "
                'Set `task_type="SEQ_CLS"` or `modules_to_save=["score"]` in the PEFT configuration.'
            )

    def _add_terms(self, inputs: RefinementInputs, data_collator: DataCollator | None) -> None:
        """Adds the terms of the method to the data, the collator and the loss, after TRL's constructor has run."""
        self._data_lines = [f"Human preferences: {count_rows(self.train_dataset)} pairs"]
        if self.args.method == "none":
            return
        samples = inputs.policy_samples
        if self.args.uses_views and samples is not None and self.args.views_share_group:
            samples = add_groups(samples, inputs.equivalence, self.args)
        if self.args.uses_synthetic_pairs:
            synthetic = inputs.synthetic_dataset
            if synthetic is None:
                labeler = inputs.labeling_reward_model, inputs.labeling_processing_class
                synthetic = synthesize_pairs(samples, inputs.equivalence, *labeler, self.args, self.accelerator.device)
            self._data_lines.append(
                f"Synthetic preferences: {count_rows(synthetic)} pairs of policy samples (SPG)"
                f"{describe_synthesis(inputs, self.args)}"
            )
            self.train_dataset = add_synthetic_pairs(self.train_dataset, synthetic, self.processing_class, self.args)
            self.add_callback(PreferenceTableCallback(synthetic, self.processing_class))
        elif data_collator is None:
            self.train_dataset = select_columns(self.train_dataset, HUMAN_COLUMNS)
        self.train_dataset = add_record_numbers(self.train_dataset, self.accelerator)
        if data_collator is None:
            view_samples = samples if self.args.uses_views else None
            if view_samples is not None:
                self._data_lines.append(f"Views: two completions of each of {count_rows(samples)} prompts (UML)")
            self.data_collator = build_collator(view_samples, self.processing_class, self.args)
        if isinstance(self.data_collator, SyntheticPreferenceCollator):
            self._connect_collator(self.data_collator)
        if self.args.uses_views:
            self.representation_term = RepresentationTerm(
                self.model, self.processing_class.pad_token_id, self.args, self.accelerator
            )
            self.add_callback(self.representation_term.heads_callback)

    def _connect_collator(self, collator: SyntheticPreferenceCollator) -> None:
        """Makes the collator draw in training only, and in each epoch again."""
        collator.draws_only_numbered = True
        collator.epoch_callback.connect()
        if collator.epoch_callback not in self.callback_handler.callbacks:
            self.add_callback(collator.epoch_callback)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Resumes a stream in the pass in which the run stopped. transformers would start a later pass again."""
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        is_stream = self.args.method != "none" and isinstance(self.train_dataset, IterableDataset)
        if resume_from_checkpoint is None or not is_stream or self.state.global_step >= max_steps:
            return position
        return find_stream_position(resume_from_checkpoint, self.args)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        Computes TRL's preference loss. In training with `uml`, it adds λ L_M.

        Args:
            model (`nn.Module`):
                The model as the trainer wrapped it.
            inputs (`dict[str, Any]`):
                A batch from the collator.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to also return the model's outputs for the pairs.
            num_items_in_batch (*optional*):
                Passed to TRL, whose loss is a mean over the micro-batch.

        Returns:
            `torch.Tensor` or `tuple[torch.Tensor, Any]`: A scalar in nats, and the outputs if `return_outputs` is set.
        """
        term = self.representation_term
        views = {name: inputs.pop(f"view_{name}") for name in VIEW_TENSORS if f"view_{name}" in inputs}
        if term is None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        forward = term.build_forward(model, views)
        loss, outputs = super().compute_loss(forward, inputs, True, num_items_in_batch)
        term.log.add({"preference_loss": loss})
        loss = loss + term(forward.hidden, views["prompt_indices"], self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Logs TRL's metrics. In training with `uml`, it adds each term of the loss and its diagnostics.

        Args:
            logs (`dict[str, float]`):
                Metrics by name.
            start_time (`float`, *optional*):
                Time at which training started.
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
        Trains as [`~transformers.Trainer.train`]. A resumed run also loads the heads and their optimizer.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint, or `True` for the last checkpoint in `args.output_dir`.
            trial (*optional*):
                Passed to [`~transformers.Trainer.train`].
            ignore_keys_for_eval (`list[str]`, *optional*):
                Passed to [`~transformers.Trainer.train`].

        Returns:
            `TrainOutput`: Number of steps, mean loss and metrics.

        Raises:
            ValueError: If there is no checkpoint, or the checkpoint has no heads of the same loss.
        """
        term = self.representation_term
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if term is not None and checkpoint is not None:
            term.heads_callback.load(checkpoint)
        with no_extra_step(self, checkpoint):
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        if term is not None:
            term.log.warn_if_mi_stays_low()
        return output

    def _save_rng_state(self, output_dir: str) -> None:
        """Waits for the files of all processes, because the main process marks the checkpoint as complete next."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _describe_model(self) -> ModelDescription:
        summary = SUMMARY + SUMMARIES[self.args.method]
        settings = list_card_settings(self.args)
        return ModelDescription(summary, self._data_lines, settings, self._hub_datasets, self._is_chat)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        redact_saved_args(output_dir or self.args.output_dir, self.args)

    def _save_checkpoint(self, model: nn.Module, trial: Any | None) -> None:
        """Writes the heads first, because TRL's part marks a checkpoint as complete and may be pushed at once."""
        folder, term = open_checkpoint(self.args, self.state), self.representation_term
        if term is not None and self.args.should_save and not self.args.save_only_model:
            term.heads_callback.save(folder)
        super()._save_checkpoint(model, trial)


def list_card_settings(args: RLPRewardConfig) -> list[str]:
    """
    Lists the fields of a configuration that a model card shows, besides those of every training.

    Args:
        args ([`RLPRewardConfig`]):
            Configuration of the training.

    Returns:
        `list[str]`: Names of fields that have an effect with `args.method`.
    """
    return [name for name in CARD_SETTINGS if name not in args.unused_fields]


def _resolve_args(args: RLPRewardConfig | None, model: str | PreTrainedModel | PeftModel) -> RLPRewardConfig:
    if args is None:
        name = model if isinstance(model, str) else model.name_or_path
        return RLPRewardConfig(f"{name.split('/')[-1]}-Reward")
    if not isinstance(args, RLPRewardConfig):
        raise TypeError(
            f"`args` must be an `RLPRewardConfig`, got `{type(args).__name__}`. It has the same fields as "
            "TRL's `RewardConfig`, and more."
        )
    return args


def _resolve_peft_config(
    peft_config: PeftConfig | None, model: str | PreTrainedModel | PeftModel, args: RLPRewardConfig
) -> PeftConfig | None:
    """Adds the score head to an adapter. Without an adapter, the model must have something to train."""
    if peft_config is None:
        require_trainable(model, "model", "peft_config")
        return None
    return peft_config if args.method == "none" else add_score_head(peft_config)
