"""The data of a refinement on its way into training: groups and pairs made once, mixed, numbered, collated."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.preferences import synthesize_preferences, tokenize_preferences
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.validation import require_columns
from trl_rlp.trainer.reward.methods import VIEWS_FROM
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


PAIR_COLUMNS = ("chosen_ids", "rejected_ids", "candidate_ids", "margin")


def broadcast_from_main(make: Callable[[], Dataset], accelerator: Accelerator) -> Dataset:
    """
    Makes a data set on the main process and gives it to all, so that no rounding lets the processes differ.

    Args:
        make (`Callable[[], datasets.Dataset]`):
            Called on the main process only.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Returns:
        `datasets.Dataset`: the same rows on every process.

    Raises:
        Exception: what `make` raised, on every process.
    """
    if accelerator.num_processes == 1:
        return make()
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            dataset = make()
            outcome = [(dataset.to_list(), dataset.features)]
        except Exception as error:
            # The others wait for the result, so the error must reach them before it is raised.
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    rows, features = outcome[0]
    return Dataset.from_list(rows, features=features)


def add_groups(samples: Dataset, equivalence: Any, args: RLPRewardConfig, accelerator: Accelerator) -> Dataset:
    """
    Gives samples with complete groups of equal meaning, for views of one group.

    Args:
        samples (`datasets.Dataset`):
            Policy samples; groups that they have are kept.
        equivalence:
            Which outputs mean the same.
        args ([`RLPRewardConfig`]):
            `confidence_threshold` is read.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Returns:
        `datasets.Dataset`: the samples with `cluster_ids`.
    """
    if "cluster_ids" in samples.column_names:
        return samples
    threshold = args.confidence_threshold
    return broadcast_from_main(
        lambda: cluster(samples, equivalence, threshold=threshold, complete_groups=True), accelerator
    )


def synthesize_pairs(
    samples: Dataset,
    equivalence: Any | None,
    reward_model: PreTrainedModel | None,
    processing_class: PreTrainedTokenizerBase | None,
    args: RLPRewardConfig,
    accelerator: Accelerator,
) -> Dataset:
    """
    Makes D̂ from policy samples with the settings of a run.

    Args:
        samples (`datasets.Dataset`):
            Policy samples P, clustered or not.
        equivalence (*optional*):
            Which outputs mean the same; needed unless the samples are clustered.
        reward_model (`PreTrainedModel`, *optional*):
            r_φ, which labels.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer. If not set, the one that was saved with it.
        args ([`RLPRewardConfig`]):
            `confidence_threshold`, `chosen`, `redraw_rejected`, `max_length` and `seed` are read.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Returns:
        `datasets.Dataset`: preferences in TRL's format, with audit columns.
    """
    if reward_model is not None and processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(reward_model.name_or_path)

    def make() -> Dataset:
        synthetic, _ = synthesize_preferences(
            samples,
            method="spg",
            equivalence=equivalence,
            reward_model=reward_model,
            reward_processing_class=processing_class,
            threshold=args.confidence_threshold,
            chosen=args.chosen,
            keep_candidates=args.redraw_rejected,
            max_length=args.max_length,
            seed=args.seed,
        )
        return synthetic

    return broadcast_from_main(make, accelerator)


def add_synthetic_pairs(
    human: Dataset, synthetic: Dataset, processing_class: PreTrainedTokenizerBase, args: RLPRewardConfig
) -> Dataset:
    """
    Gives D ∪ D̂ as token ids, with the columns that training reads.

    Args:
        human (`datasets.Dataset`):
            D as TRL has tokenized it.
        synthetic (`datasets.Dataset`):
            D̂, tokenized or not. What is longer than `max_length` loses the beginning of its prompt.
        processing_class (`PreTrainedTokenizerBase`):
            Tokenizer of the model in training.
        args ([`RLPRewardConfig`]):
            `max_length`, `redraw_rejected`, `synthetic_share` and `seed` are read.

    Returns:
        `datasets.Dataset`: `chosen_ids`, `rejected_ids`, and `candidate_ids` and `margin` where there are any.

    Raises:
        ValueError: if `redraw_rejected` is set and D̂ has no candidates to draw from.
    """
    if not {"chosen_ids", "rejected_ids"} <= set(synthetic.column_names):
        synthetic = tokenize_preferences(synthetic, processing_class, args.max_length)
    if args.redraw_rejected and "candidate_ids" not in synthetic.column_names:
        raise ValueError(
            "`redraw_rejected` is True, but `synthetic_dataset` has no `candidates` to draw from. Make it with "
            "`keep_candidates=True`."
        )
    if not args.redraw_rejected and "candidate_ids" in synthetic.column_names:
        synthetic = synthetic.remove_columns("candidate_ids")
    require_columns(synthetic, ["chosen_ids", "rejected_ids"], "synthetic_dataset")
    mixture = mix_preferences(_pairs(human), _pairs(synthetic), args.synthetic_share, args.seed)
    return _pairs(mixture)


def _pairs(dataset: Dataset) -> Dataset:
    return dataset.select_columns([column for column in PAIR_COLUMNS if column in dataset.column_names])


def number_records(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    Adds `record`, the number by which the collator draws.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Tokenized pairs. A column of that name gives way.

    Returns:
        `Dataset` or `IterableDataset`: the same rows, numbered from 0.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.map(lambda _, record: {"record": record}, with_indices=True)
    if "record" in dataset.column_names:
        dataset = dataset.remove_columns("record")
    return dataset.add_column("record", list(range(len(dataset))))


def build_collator(
    samples: Dataset | None, processing_class: PreTrainedTokenizerBase, args: RLPRewardConfig
) -> SyntheticPreferenceCollator:
    """
    Makes the collator of a run.

    Args:
        samples (`datasets.Dataset`, *optional*):
            Policy samples, if the method learns on views.
        processing_class (`PreTrainedTokenizerBase`):
            Tokenizer of the model in training.
        args ([`RLPRewardConfig`]):
            Settings of the run.

    Returns:
        [`SyntheticPreferenceCollator`]
    """
    views = None
    if samples is not None:
        same_group = VIEWS_FROM[args.views_from]
        views = ViewSampler(
            samples, processing_class, seed=args.seed, same_group=same_group, max_length=args.max_length
        )
    return SyntheticPreferenceCollator(
        processing_class.pad_token_id,
        args.pad_to_multiple_of,
        seed=args.seed,
        views=views,
        view_prompts_per_device=args.view_prompts_per_device,
        records_per_batch=args.per_device_train_batch_size,
    )
