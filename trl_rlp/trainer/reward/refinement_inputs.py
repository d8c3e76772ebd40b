"""The inputs of a refinement and their checks, separate from the trainer because they come before any training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.groups.clustering import has_groups
from trl_rlp.data.groups.equivalence import require_equivalence
from trl_rlp.data.groups.instruction import require_instruction_column
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.data.validation import require_columns, require_one_split, require_samples, require_values
from trl_rlp.storage.whole_weights import require_whole_weights
from trl_rlp.trainer.model_card import describe_model
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


@dataclass(frozen=True)
class RefinementInputs:
    """The arguments that [`RLPRewardTrainer`] adds to those of TRL's trainer, under the same names."""

    policy_samples: Dataset | None
    equivalence: Any | None
    labeling_reward_model: PreTrainedModel | None
    labeling_processing_class: PreTrainedTokenizerBase | None
    synthetic_dataset: Dataset | None

    def check(
        self,
        args: RLPRewardConfig,
        model: str | nn.Module,
        train_dataset: Dataset | IterableDataset | None,
        data_collator: DataCollator | None,
    ) -> None:
        """
        Checks that the method has all inputs that it needs and none that it would ignore.

        Args:
            args ([`RLPRewardConfig`]):
                Configuration of the run.
            model (`str` or `nn.Module`):
                The model to train.
            train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
                Human pairs.
            data_collator (`DataCollator`, *optional*):
                Collator that the user passed.

        Raises:
            TypeError: If an input has the wrong type.
            ValueError: If an input is missing or not used, or if the labeling model is the model to train.
        """
        self._check_unused(args, data_collator)
        self._check_types()
        if args.method == "none":
            return
        if self.policy_samples is not None:
            require_samples(self.policy_samples)
        self._check_shared_weights(model)
        if args.uses_views and data_collator is not None:
            _check_view_collator(args, data_collator)
        elif args.uses_views:
            self._check_view_samples(args)
        if args.uses_synthetic_pairs:
            _check_no_stream(args, train_dataset)
        if args.uses_synthetic_pairs and self.synthetic_dataset is None:
            self._check_pair_sources(args)
        _check_redraw(args, data_collator)

    def _check_unused(self, args: RLPRewardConfig, data_collator: DataCollator | None) -> None:
        makes_pairs = args.uses_synthetic_pairs and self.synthetic_dataset is None
        draws_views = args.uses_views and data_collator is None
        used = {
            "policy_samples": makes_pairs or draws_views,
            "equivalence": makes_pairs or (draws_views and args.views_share_group),
            "labeling_reward_model": makes_pairs,
            "labeling_processing_class": makes_pairs,
            "synthetic_dataset": args.uses_synthetic_pairs,
        }
        for name, is_used in used.items():
            if vars(self)[name] is not None and not is_used:
                condition = " and a ready `synthetic_dataset`" if args.uses_synthetic_pairs and not makes_pairs else ""
                raise ValueError(f"`{name}` is not used with `method`={args.method!r}{condition}. Remove it.")

    def _check_types(self) -> None:
        if self.synthetic_dataset is not None:
            synthetic = require_columns(self.synthetic_dataset, [], "synthetic_dataset")
            if not {"chosen_ids", "rejected_ids"} <= set(synthetic.column_names):
                require_columns(synthetic, ["chosen", "rejected"], "synthetic_dataset")
        if not isinstance(self.labeling_reward_model, PreTrainedModel | PeftModel | None):
            raise TypeError(
                f"`labeling_reward_model` must be a model, got `{type(self.labeling_reward_model).__name__}`. Load "
                "it with `AutoModelForSequenceClassification.from_pretrained`."
            )
        if self.labeling_reward_model is not None:
            require_whole_weights("labeling_reward_model")
        if self.equivalence is not None:
            require_equivalence(self.equivalence)
            if isinstance(self.policy_samples, Dataset) and not self._has_groups():
                require_instruction_column(self.policy_samples, self.equivalence, "policy_samples")

    def _check_shared_weights(self, model: str | nn.Module) -> None:
        if self.labeling_reward_model is None or isinstance(model, str):
            return
        trained = {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) in trained for parameter in self.labeling_reward_model.parameters()):
            raise ValueError(
                "`labeling_reward_model` is the model to train, or shares weights with it. Load the frozen reward "
                "model of step 2 as a separate object."
            )

    def _check_view_samples(self, args: RLPRewardConfig) -> None:
        if self.policy_samples is None:
            raise ValueError(
                f"`policy_samples` is None, but `method`={args.method!r} draws views from policy samples. Pass them."
            )
        if args.views_share_group and self.equivalence is None and not self._has_groups():
            raise ValueError(
                f"`equivalence` is None, but `views_from`={args.views_from!r} needs groups of completions with the "
                "same meaning. Pass an equivalence from `trl_rlp.data.groups`, or samples that were grouped by "
                "`cluster(..., complete_groups=True)`."
            )

    def _check_pair_sources(self, args: RLPRewardConfig) -> None:
        if self.policy_samples is None:
            raise ValueError(
                f"`policy_samples` and `synthetic_dataset` are None, but `method`={args.method!r} needs one of them. "
                "Pass policy samples or ready synthetic preferences."
            )
        if self.equivalence is None and not self._has_groups():
            raise ValueError(
                f"`equivalence` is None, but `method`={args.method!r} groups completions by meaning. Pass an "
                "equivalence from `trl_rlp.data.groups`, samples that were grouped by `cluster`, or a "
                "`synthetic_dataset`."
            )
        if self.labeling_reward_model is None and args.chosen == "reward":
            raise ValueError(
                '`labeling_reward_model` is None, but `chosen`="reward" chooses the completion with the highest '
                'reward. Pass the reward model of step 2, or set `chosen`="random".'
            )
        labeler = self.labeling_reward_model
        if labeler is not None and self.labeling_processing_class is None and not labeler.name_or_path:
            raise ValueError(
                "`labeling_processing_class` is None, and `labeling_reward_model` was not loaded from a folder that "
                "contains its tokenizer. Pass the tokenizer."
            )

    def _has_groups(self) -> bool:
        return self.policy_samples is not None and "cluster_ids" in self.policy_samples.column_names


def _check_view_collator(args: RLPRewardConfig, data_collator: DataCollator) -> None:
    if not isinstance(data_collator, SyntheticPreferenceCollator):
        raise ValueError(
            f"`data_collator` is a `{type(data_collator).__name__}`, which adds no views for `method`="
            f"{args.method!r}. Remove it or pass a `SyntheticPreferenceCollator` with `views`."
        )
    if data_collator.views is None:
        raise ValueError(
            f"`data_collator` has no `views` for `method`={args.method!r}. Pass it a `ViewSampler`, or remove "
            "`data_collator`."
        )


def _check_no_stream(args: RLPRewardConfig, train_dataset: Dataset | IterableDataset | None) -> None:
    if isinstance(train_dataset, IterableDataset):
        raise ValueError(
            f"`train_dataset` is an `IterableDataset`, which `method`={args.method!r} cannot mix with synthetic "
            "pairs. Load it without streaming."
        )


def _check_redraw(args: RLPRewardConfig, data_collator: DataCollator | None) -> None:
    if args.redraw_rejected and not isinstance(data_collator, SyntheticPreferenceCollator | None):
        raise ValueError(
            f"`redraw_rejected` is True, but `data_collator` is a `{type(data_collator).__name__}`, which draws "
            "nothing. Remove `data_collator` or pass a `SyntheticPreferenceCollator`."
        )


def describe_synthesis(inputs: RefinementInputs, args: RLPRewardConfig) -> str:
    """
    Describes for a model card how the trainer makes synthetic preferences from policy samples.

    Args:
        inputs ([`RefinementInputs`]):
            Inputs of a run with SPG.
        args ([`RLPRewardConfig`]):
            Configuration of the run.

    Returns:
        `str`: Text after the number of pairs: n, γ, the equivalence and the model that chose y_w. Empty for ready
        pairs, whose origin the trainer does not know.
    """
    if inputs.synthetic_dataset is not None or inputs.policy_samples is None:
        return ""
    number = len(inputs.policy_samples[0]["completions"])
    parts = [f"{number} completions of each prompt", f"γ = {args.confidence_threshold:g}"]
    if inputs.equivalence is not None and not has_groups(inputs.policy_samples.column_names):
        parts.append(f"groups by `{type(inputs.equivalence).__name__}`")
    if args.chosen == "random":
        parts.append("a random member of the largest group is chosen")
    elif inputs.labeling_reward_model is not None:
        model = describe_model(inputs.labeling_reward_model.name_or_path)
        parts.append(f"the member with the highest reward is chosen, by {model}")
    return f", {', '.join(parts)}"


def check_preferences(
    train_dataset: Dataset | IterableDataset | None,
    processing_class: PreTrainedTokenizerBase | None,
    eval_dataset: Dataset | IterableDataset | Mapping[Any, Dataset | IterableDataset] | None = None,
    eos_token: str | None = None,
) -> None:
    """
    Checks the human pairs and the tokenizer. TRL's trainer would fail on them later, with a less clear message.

    Args:
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Human pairs. A stream is checked when it is read.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer that the user passed.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            Human pairs to evaluate on.
        eos_token (`str`, *optional*):
            EOS token that the configuration names. TRL sets it on the tokenizer.

    Raises:
        TypeError: If `train_dataset` is a dict of splits.
        ValueError: If a dataset has no pairs, a value is missing, or the tokenizer has no EOS token that text needs.
    """
    require_one_split(train_dataset, "train_dataset")
    datasets = {"train_dataset": train_dataset}
    if isinstance(eval_dataset, Mapping):
        datasets |= {f"eval_dataset[{name!r}]": dataset for name, dataset in eval_dataset.items()}
    else:
        datasets["eval_dataset"] = eval_dataset
    for name, dataset in datasets.items():
        if isinstance(dataset, Dataset):
            is_tokenized = any(column in dataset.column_names for column in ("chosen_ids", "chosen_input_ids"))
            dataset = require_columns(dataset, [] if is_tokenized else ["chosen", "rejected"], name)
            require_values(dataset, ["margin", *([] if is_tokenized else ["prompt", "chosen", "rejected"])], name)
    if processing_class is None or eos_token is not None or processing_class.eos_token_id is not None:
        return
    if any(_has_text(dataset) for dataset in datasets.values() if dataset is not None):
        raise ValueError(
            "`processing_class` has no EOS token, but pairs of text need one at their end. Set `eos_token` in `args` "
            "or on the tokenizer."
        )


def _has_text(dataset: Dataset | IterableDataset) -> bool:
    """Checks whether pairs are text that TRL ends with EOS, and neither messages nor token ids."""
    row = next(iter(dataset), {})
    return isinstance(row.get("chosen"), str) and "chosen_ids" not in row
