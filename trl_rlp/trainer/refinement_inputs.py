"""What a refinement starts from besides human pairs, and the checks that it fits the method."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.collator import SyntheticPreferenceCollator
from trl_rlp.data.validation import require_samples
from trl_rlp.trainer.rlp_reward_config import METHODS, VIEWS_FROM, RLPRewardConfig


@dataclass(frozen=True)
class RefinementInputs:
    """
    The arguments that [`~trl_rlp.trainer.rlp_reward_trainer.RLPRewardTrainer`] has and TRL's trainer has not, under
    the same names.
    """

    policy_samples: Dataset | None
    equivalence: Any | None
    labelling_reward_model: PreTrainedModel | None
    labelling_processing_class: PreTrainedTokenizerBase | None
    synthetic_dataset: Dataset | None

    def require_fit(
        self,
        args: RLPRewardConfig,
        model: str | nn.Module,
        train_dataset: Dataset | IterableDataset | None,
        data_collator: DataCollator | None,
    ) -> None:
        """
        Checks that the method has what it needs and nothing that it would ignore.

        Args:
            args ([`RLPRewardConfig`]):
                Settings of the run.
            model (`str` or `nn.Module`):
                The model to train.
            train_dataset (`Dataset` or `IterableDataset`):
                Human pairs.
            data_collator (`DataCollator`, *optional*):
                What the user gave.

        Raises:
            ValueError: if something is missing, useless, or the labeller is the model that is trained.
        """
        terms = METHODS[args.method]
        if not any(terms):
            self._require_nothing()
            return
        if self.policy_samples is not None:
            require_samples(self.policy_samples)
        self._require_labeller_apart(model)
        if terms.views:
            self._require_views(args, data_collator)
        if terms.synthetic:
            self._require_pairs(args, train_dataset)
        if args.redraw_rejected and not isinstance(data_collator, SyntheticPreferenceCollator | None):
            raise ValueError(
                f"`redraw_rejected` is True, but `data_collator` is a `{type(data_collator).__name__}`, which draws "
                "nothing. Leave `data_collator` out or pass a `SyntheticPreferenceCollator`."
            )

    def _require_nothing(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                raise ValueError(
                    f'`{name}` has no use with `method`="none". Set `method` to "uml", "spg" or "uml+spg".'
                )

    def _require_labeller_apart(self, model: str | nn.Module) -> None:
        if self.labelling_reward_model is None or isinstance(model, str):
            return
        trained = {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) in trained for parameter in self.labelling_reward_model.parameters()):
            raise ValueError(
                "`labelling_reward_model` is the model that is trained, or shares weights with it. Load the frozen "
                "reward model of step 2 as an object of its own."
            )

    def _require_views(self, args: RLPRewardConfig, data_collator: DataCollator | None) -> None:
        if data_collator is not None and not isinstance(data_collator, SyntheticPreferenceCollator):
            raise ValueError(
                f"`data_collator` is a `{type(data_collator).__name__}`, which brings no views for `method`="
                f"{args.method!r}. Leave it out or pass a `SyntheticPreferenceCollator` with `views`."
            )
        if data_collator is not None:
            if data_collator.views is None:
                raise ValueError(
                    f"`data_collator` has no `views` for `method`={args.method!r}. Give it a `ViewSampler` or leave "
                    "`data_collator` out."
                )
            return
        if self.policy_samples is None:
            raise ValueError(
                f"`policy_samples` is None, but `method`={args.method!r} learns on views of them. Pass P."
            )
        if VIEWS_FROM[args.views_from] and self.equivalence is None and not self._has_groups():
            raise ValueError(
                f"`equivalence` is None, but `views_from`={args.views_from!r} needs groups of equal meaning. Pass one "
                "of `trl_rlp.data.equivalence`, or samples that `cluster(..., complete_groups=True)` has grouped."
            )

    def _require_pairs(self, args: RLPRewardConfig, train_dataset: Dataset | IterableDataset | None) -> None:
        if isinstance(train_dataset, IterableDataset):
            raise ValueError(
                f"`train_dataset` is an `IterableDataset`, which `method`={args.method!r} cannot mix with synthetic "
                "pairs. Load it without streaming."
            )
        if self.synthetic_dataset is not None:
            return
        if self.policy_samples is None:
            raise ValueError(
                f"`policy_samples` and `synthetic_dataset` are None, but `method`={args.method!r} needs one of them. "
                "Pass P or a ready D̂."
            )
        if self.equivalence is None and not self._has_groups():
            raise ValueError(
                f"`equivalence` is None, but `method`={args.method!r} groups outputs by meaning. Pass one of "
                "`trl_rlp.data.equivalence`, samples that `cluster` has grouped, or a `synthetic_dataset`."
            )
        if self.labelling_reward_model is None and args.chosen == "reward":
            raise ValueError(
                '`labelling_reward_model` is None, but `chosen`="reward" prefers the output with the highest reward. '
                'Pass the reward model of step 2, or set `chosen`="random".'
            )
        labeller = self.labelling_reward_model
        if labeller is not None and self.labelling_processing_class is None and not labeller.name_or_path:
            raise ValueError(
                "`labelling_processing_class` is None, and `labelling_reward_model` was not loaded from a folder that "
                "has its tokenizer. Pass the tokenizer."
            )

    def _has_groups(self) -> bool:
        return self.policy_samples is not None and "cluster_ids" in self.policy_samples.column_names
