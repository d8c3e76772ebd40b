"""The data of a refinement, separate from the trainer because it is built once, before training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.argument_names import rename_arguments
from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.groups.equivalence import release_after
from trl_rlp.data.preferences.collator import RECORD, SyntheticPreferenceCollator
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.preferences import synthesize_preferences, tokenize_preferences
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.special_tokens import adds_special_tokens, drop_repeated
from trl_rlp.data.validation import require_columns
from trl_rlp.storage.fingerprints import (
    dataset_fingerprint,
    tokenizer_fingerprint,
    value_fingerprint,
    weights_fingerprint,
)
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.stream_passes import number_stream


logger = get_logger(__name__)

HUMAN_COLUMNS = ("chosen_ids", "rejected_ids", "margin")
"""Columns of tokenized human pairs that training reads: those that TRL reads."""

PAIR_COLUMNS = (*HUMAN_COLUMNS, "candidate_ids")
"""Columns of tokenized pairs that training reads."""

SHARDS = "_refinement"
"""Name of the folder for shards of groups and pairs, in `output_dir`. It may be deleted after training."""

FIELD_NAMES = {
    "threshold": "`confidence_threshold`",
    "allow_unfinished_chosen=True": (
        "`allow_unfinished_chosen=True` to `synthesize_preferences` and train on its pairs"
    ),
}
"""What users of RLPRewardConfig set instead of arguments of the functions that make pairs, for error messages."""

Pairs = TypeVar("Pairs", Dataset, IterableDataset)


def add_groups(samples: Dataset, equivalence: Any, args: RLPRewardConfig) -> Dataset:
    """
    Adds complete groups of completions with the same meaning, for views from one group. The processes share the work.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples. If they already have groups, these are kept.
        equivalence:
            Decides which completions have the same meaning.
        args ([`RLPRewardConfig`]):
            Configuration of the run. `confidence_threshold` and `output_dir` are used.

    Returns:
        `datasets.Dataset`: The samples with a column `cluster_ids`, the same on every process.
    """
    if "cluster_ids" in samples.column_names:
        return samples
    threshold = args.confidence_threshold
    folder = _name_shards("groups", args, dataset_fingerprint(samples), equivalence.fingerprint, threshold)
    with release_after(equivalence):
        return cluster(samples, equivalence, threshold=threshold, complete_groups=True, output_dir=folder)


def synthesize_pairs(
    samples: Dataset,
    equivalence: Any | None,
    reward_model: PreTrainedModel | None,
    processing_class: PreTrainedTokenizerBase | None,
    args: RLPRewardConfig,
    device: torch.device,
) -> Dataset:
    """
    Makes the synthetic preferences D̂ from policy samples, with the settings of a run. The processes share the work.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples P, with or without groups.
        equivalence (*optional*):
            Decides which completions have the same meaning. Required unless the samples have groups.
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            Reward model that labels the pairs (r_φ in the paper). It is on `device` only during this call.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the reward model. If `None`, it is loaded from the reward model's folder.
        args ([`RLPRewardConfig`]):
            Configuration of the run. `confidence_threshold`, `chosen`, `redraw_rejected`, `max_length`, `seed` and
            `output_dir` are used.
        device (`torch.device`):
            Device of this process.

    Returns:
        `datasets.Dataset`: Preferences in TRL's format, with audit columns, the same on every process.

    Raises:
        ValueError: For the reasons of [`synthesize_preferences`]. The message names fields of `args`.
    """
    if reward_model is not None and processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(
            reward_model.name_or_path, trust_remote_code=args.trust_remote_code
        )
    options = {
        "threshold": args.confidence_threshold,
        "chosen": args.chosen,
        "keep_candidates": args.redraw_rejected,
        "max_length": args.max_length,
        "seed": args.seed,
    }
    labelers = [
        None if equivalence is None else equivalence.fingerprint,
        None if reward_model is None else weights_fingerprint(reward_model),
        None if reward_model is None else tokenizer_fingerprint(processing_class),
    ]
    names = {**FIELD_NAMES, "samples": "`policy_samples`"}
    with _keep_on(device, reward_model), release_after(equivalence), rename_arguments(names):
        synthetic, _ = synthesize_preferences(
            samples,
            method="spg",
            equivalence=equivalence,
            reward_model=reward_model,
            reward_processing_class=processing_class,
            output_dir=_name_shards("pairs", args, dataset_fingerprint(samples), labelers, options),
            **options,
        )
    return synthetic


def _name_shards(name: str, args: RLPRewardConfig, *decisive: Any) -> Path:
    """
    Names the folder of shards after everything that decides them, so other data in the same `output_dir` is no error.

    TRL does not push folders with an underscore to the Hub.
    """
    return Path(args.output_dir) / SHARDS / f"{name}-{value_fingerprint(decisive)[:12]}"


@contextmanager
def _keep_on(device: torch.device, model: PreTrainedModel | None) -> Iterator[None]:
    """Moves a model to the device inside a `with` block, unless accelerate has spread it over devices."""
    if model is None or hasattr(model, "hf_device_map") or model.device == device:
        yield
        return
    home = model.device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def drop_repeated_tokens(
    dataset: Pairs, processing_class: PreTrainedTokenizerBase, num_proc: int | None = None
) -> Pairs:
    """
    Removes the EOS that a tokenizer appended after the EOS of a text, and the BOS that it added before the BOS.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Human pairs D, tokenized by TRL. Pairs of messages do not change, nor do pairs that have no text.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the pairs.
        num_proc (`int`, *optional*):
            Number of processes that read a dataset. A stream is always read by one.

    Returns:
        `Dataset` or `IterableDataset`: The same rows.
    """
    if not adds_special_tokens(processing_class):
        return dataset
    options = (
        {"num_proc": num_proc, "desc": "Removing repeated special tokens"} if isinstance(dataset, Dataset) else {}
    )
    return dataset.map(_drop_from_row, fn_kwargs={"processing_class": processing_class}, **options)


def report_too_long_pairs(num_pairs: int, num_kept: int, max_length: int | None, name: str) -> None:
    """
    Warns about pairs that TRL left out because a text is longer than `max_length`.

    Args:
        num_pairs (`int`):
            Number of all pairs.
        num_kept (`int`):
            Number of pairs that are left.
        max_length (`int`, *optional*):
            Maximum number of tokens of a text.
        name (`str`):
            Name of the argument with the pairs.

    Raises:
        ValueError: If no pair is left.
    """
    if num_kept == num_pairs:
        return
    if num_kept == 0:
        raise ValueError(
            f"All pairs of `{name}` ({num_pairs}) are longer than `max_length`={max_length} tokens, and TRL leaves "
            "such pairs out. Raise `max_length`, or pass shorter texts."
        )
    logger.warning_once(
        f"{num_pairs - num_kept} of {num_pairs} pairs of `{name}` are longer than `max_length`={max_length} tokens "
        "and are left out, as in TRL. Raise `max_length` to keep them."
    )


def _drop_from_row(row: dict[str, Any], processing_class: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    if not isinstance(row.get("chosen"), str):
        return {}
    sides = {name: [int(token) for token in row[name]] for name in ("chosen_ids", "rejected_ids")}
    return {name: drop_repeated(ids, processing_class) for name, ids in sides.items()}


def add_synthetic_pairs(
    human: Dataset, synthetic: Dataset, processing_class: PreTrainedTokenizerBase, args: RLPRewardConfig
) -> Dataset:
    """
    Returns D ∪ D̂ as token ids, with only the columns that training reads.

    Args:
        human ([`~datasets.Dataset`]):
            Human pairs D, tokenized by TRL.
        synthetic ([`~datasets.Dataset`]):
            Synthetic pairs D̂, tokenized or not. Texts longer than `max_length` lose the beginning of their prompt.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model in training.
        args ([`RLPRewardConfig`]):
            Configuration of the run. `max_length`, `redraw_rejected`, `synthetic_share` and `seed` are used.

    Returns:
        `datasets.Dataset`: The columns `chosen_ids` and `rejected_ids`, and `candidate_ids` and `margin` if the pairs
        have them.

    Raises:
        ValueError: If `redraw_rejected` is set and D̂ has no candidates to draw from.
    """
    if not args.redraw_rejected:  # a column with these names may be the user's
        synthetic = _drop_columns(synthetic, ("candidates", "candidate_ids"))
    if not {"chosen_ids", "rejected_ids"} <= set(synthetic.column_names):
        synthetic = tokenize_preferences(synthetic, processing_class, args.max_length)
    if args.redraw_rejected and "candidate_ids" not in synthetic.column_names:
        raise ValueError(
            "`redraw_rejected` is True, but `synthetic_dataset` has no `candidates` to draw from. Make it with "
            "`keep_candidates=True`."
        )
    require_columns(synthetic, ["chosen_ids", "rejected_ids"], "synthetic_dataset")
    mixture = mix_preferences(
        select_columns(human, HUMAN_COLUMNS), select_columns(synthetic, PAIR_COLUMNS), args.synthetic_share, args.seed
    )
    return select_columns(mixture, PAIR_COLUMNS)


def _drop_columns(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    return dataset.remove_columns([column for column in columns if column in dataset.column_names])


def select_columns(dataset: Pairs, columns: Sequence[str]) -> Pairs:
    """
    Drops all columns but some. A user's dataset may have columns with any name.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Any dataset. Of a stream with unknown columns, the first row is read.
        columns (`Sequence[str]`):
            Columns to keep, if the dataset has them.

    Returns:
        `Dataset` or `IterableDataset`: The same rows.
    """
    present = dataset.column_names or list(next(iter(dataset), {}))
    return dataset.select_columns([column for column in columns if column in present])


def add_record_numbers(dataset: Pairs, accelerator: Accelerator) -> Pairs:
    """
    Adds the column `rlp_record`, the number of each row. The collator's random draws depend on it.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Tokenized pairs. An existing column `rlp_record` is replaced.
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.

    Returns:
        `Dataset` or `IterableDataset`: The same rows, numbered from 0.
    """
    if isinstance(dataset, IterableDataset):
        return number_stream(dataset, accelerator)
    return _drop_columns(dataset, [RECORD]).add_column(RECORD, list(range(len(dataset))))


def build_collator(
    samples: Dataset | None, processing_class: PreTrainedTokenizerBase, args: RLPRewardConfig
) -> SyntheticPreferenceCollator:
    """
    Builds the collator of a run.

    Args:
        samples ([`~datasets.Dataset`], *optional*):
            Policy samples, if the method trains on views.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model in training.
        args ([`RLPRewardConfig`]):
            Configuration of the run.

    Returns:
        [`SyntheticPreferenceCollator`]: The collator.
    """
    views = None
    if samples is not None:
        views = ViewSampler(
            samples,
            processing_class,
            seed=args.seed,
            same_group=args.views_share_group,
            max_length=args.max_length,
        )
    return SyntheticPreferenceCollator(
        processing_class.pad_token_id,
        args.pad_to_multiple_of,
        seed=args.seed,
        views=views,
        view_prompts_per_device=args.view_prompts_per_device,
        records_per_batch=args.per_device_train_batch_size,
    )
