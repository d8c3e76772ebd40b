"""Synthetic preferences from policy samples, in TRL's preference format."""

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.columns import list_finished
from trl_rlp.data.groups.clustering import has_groups, require_decided_groups, warn_of_low_threshold
from trl_rlp.data.groups.instruction import fingerprint_instructions, list_instruction_columns
from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import Judge
from trl_rlp.data.preferences.labeling import Label, build_features
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.pairing import CHOSEN, GENERATORS, GROUP_GENERATORS, NoPairsError
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.scoring import batch_scoring_ids, cut_prompts, warn_of_cut_prompts
from trl_rlp.data.template_options import TEMPLATE_COLUMNS, list_template_options
from trl_rlp.data.validation import require_columns, require_samples
from trl_rlp.storage.fingerprints import dataset_fingerprint, tokenizer_fingerprint, weights_fingerprint
from trl_rlp.storage.shards import choose_shard_size, map_shards


__all__ = ["CHOSEN", "GENERATORS", "REJECTIONS", "mix_preferences", "synthesize_preferences", "tokenize_preferences"]

logger = logging.get_logger(__name__)

SHARD_SIZE = 256
"""Smallest number of prompts per shard, if the user has not set it."""

_REASON = "reason"

REJECTIONS: dict[str, str] = {
    "below_threshold": "Lower `threshold`, or check that `equivalence` separates completions by meaning.",
    "single_member": "Sample more completions per prompt until some agree.",
    "all_agree": "Sample at a higher temperature, or sample more completions until some differ.",
    "nothing_left": "Let completions finish (`max_new_tokens`), or pass `allow_unfinished_chosen=True`.",
    "ties": "Use a judge or a reward model that separates the completions.",
    "not_judged": "Shorten the completions, or use a judge with a longer context.",
}
"""The reasons why a prompt has no pair, and what to do about each."""


def synthesize_preferences(
    samples: Dataset,
    method: str,
    *,
    equivalence: Any = None,
    reward_model: PreTrainedModel | PeftModel | None = None,
    reward_processing_class: PreTrainedTokenizerBase | None = None,
    judge: Judge | None = None,
    threshold: float = 0.5,
    chosen: str = "reward",
    keep_candidates: bool = False,
    allow_unfinished_chosen: bool = False,
    max_length: int | None = None,
    seed: int = 0,
    output_dir: str | Path | None = None,
    shard_size: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """
    Builds synthetic preferences D̂ from policy samples P, with at most one pair per prompt.

    With `spg`, the completions are grouped by meaning. A prompt is accepted if its largest group has at least two
    members and at least a share γ of the completions. y_w is the member with the highest reward. y_l is drawn
    uniformly from the completions outside the group. Empty completions belong to no group and can only be y_l. An
    unfinished completion can be y_w only with `allow_unfinished_chosen`.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions` and `finished`. If they have `cluster_ids` and `confidence` (from
            [`cluster`]), these groups are used, and `equivalence` is not.
        method (`str`):
            `spg`, `select_all` (γ = 0), `reward` (two completions, labeled by the reward model), `rlaif` (two
            completions, labeled by the judge) or `majority_best` (ours: as `spg`, but y_l is drawn from all
            completions with another text than y_w, inside and outside the group).
        equivalence (*optional*):
            Decides which completions mean the same, see `trl_rlp.data.groups`. For `spg`, `select_all` and
            `majority_best`.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Frozen r_φ of step 2. It must not be the model in training. Needed by `reward`, `majority_best` and
            `chosen="reward"`. In other cases it only fills the reward columns.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of `reward_model`.
        judge (`Callable`, *optional*):
            For `rlaif`: `judge(prompts, firsts, seconds)` returns the probabilities in [0, 1] that the first
            completion is better, or `None` to leave a pair out.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest confidence that is accepted, between 0 and 1 (γ in the paper). For `spg` and `majority_best`.
        chosen (`str`, *optional*, defaults to `"reward"`):
            How y_w is picked from the largest group. `"reward"` takes the member with the highest reward, as in the
            paper. `"random"` takes a random member. For `spg` and `select_all`. `majority_best` always picks by
            reward.
        keep_candidates (`bool`, *optional*, defaults to `False`):
            Whether to keep all completions that could be y_l. The collator then draws one of them again in each epoch.
            For `spg`, `select_all` and `majority_best`.
        allow_unfinished_chosen (`bool`, *optional*, defaults to `False`):
            Whether a completion that stopped at the token limit can be y_w.
        max_length (`int`, *optional*):
            Longest input of the reward model, in tokens. A longer input loses the beginning of its prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, at least 0. The draws of a row depend only on the seed and on the content of the row.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards: preferences of `shard_size` prompts each. An interrupted call resumes from it.
            The call does not notice if `judge` is another one.
        shard_size (`int`, *optional*):
            Number of prompts per shard. Defaults to 256, or to a thousandth of the prompts if that is more. Under
            `accelerate launch`, the processes share the shards, and every process must call the function.

    Returns:
        `tuple[datasets.Dataset, dict[str, int]]`: Preferences in TRL's format with their audit columns (see
        docs/synthetic_preferences.md), and the number of prompts without a pair for each reason in `REJECTIONS`.

    Raises:
        ValueError: If an argument is out of range, an argument that the method needs is missing, the samples are not
            policy samples or were clustered for another threshold, a reward is NaN or infinite, no prompt has a pair,
            or `output_dir` holds the shards of another call.

    Relations:
        [`Label`] does the same to batches of columns, for `Dataset.map` and Ray Data.

    Reference:
        SPG of [Lang et al. 2024](https://arxiv.org/abs/2403.19279). The other methods, except for `majority_best`, are
        those of its Table 5.
    """
    samples = require_samples(samples, "samples")
    shard_size = choose_shard_size(len(samples), SHARD_SIZE) if shard_size is None else shard_size
    require_settings(shard_size=shard_size)
    options = {
        "equivalence": equivalence,
        "reward_model": reward_model,
        "reward_processing_class": reward_processing_class,
        "judge": judge,
        "threshold": threshold,
        "chosen": chosen,
        "keep_candidates": keep_candidates,
        "allow_unfinished_chosen": allow_unfinished_chosen,
        "max_length": max_length,
        "seed": seed,
    }
    label = _build_label(samples, method, **options)
    features = build_features(samples.features, keep_candidates)
    samples = samples.select_columns(_list_columns(samples, equivalence))
    fingerprint = None if output_dir is None else _build_fingerprint(samples, method, shard_size=shard_size, **options)
    has_parts = isinstance(judge, AskedJudge) and len(samples) > shard_size
    with judge.in_parts() if has_parts else nullcontext():
        rows = map_shards(
            samples,
            functools.partial(_label_shard, label, list(features), shard_size),
            description="Preferring",
            shard_size=shard_size,
            output_dir=output_dir,
            fingerprint=fingerprint,
            features=Features({**features, _REASON: Value("string")}),
        )
    return _separate_pairs(rows)


def check_synthesis(samples: Dataset, method: str, **options: Any) -> None:
    """
    Checks the arguments of [`synthesize_preferences`] without any work, for programs that then claim a folder.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples.
        method (`str`):
            Key of `GENERATORS`.
        options:
            The other arguments of [`synthesize_preferences`], except for `output_dir` and `shard_size`.

    Raises:
        TypeError, ValueError: For the same reasons as [`synthesize_preferences`] before its work.
    """
    _build_label(require_samples(samples, "samples"), method, **options)


def _build_label(samples: Dataset, method: str, **options: Any) -> Label:
    label = Label(method=method, **options)
    label.require_groups(samples.column_names)
    threshold = 0.0 if method == "select_all" else options["threshold"]
    if has_groups(samples.column_names) and method in GROUP_GENERATORS:
        require_decided_groups(samples, threshold)
    if method in ("spg", "majority_best"):
        warn_of_low_threshold(threshold, len(samples[0]["completions"]))
    return label


def _list_columns(samples: Dataset, equivalence: Any) -> list[str]:
    """Lists the columns that decide the pairs."""
    names = ["prompt", "completions", "finished", *TEMPLATE_COLUMNS, "cluster_ids", "confidence", "confidence_upper"]
    if equivalence is not None and not has_groups(samples.column_names):
        names += list_instruction_columns(equivalence)
    return [name for name in names if name in samples.column_names]


def _build_fingerprint(samples: Dataset, method: str, **options: Any) -> dict[str, Any]:
    """Returns everything that decides the pairs, except for the judge, which may be any function."""
    equivalence, reward_model = options["equivalence"], options["reward_model"]
    names = ("threshold", "chosen", "keep_candidates", "allow_unfinished_chosen", "max_length", "seed", "shard_size")
    tokenizer = options["reward_processing_class"]
    asks = equivalence is not None and not has_groups(samples.column_names)
    return {
        "samples": dataset_fingerprint(samples),
        "method": method,
        "equivalence": None if equivalence is None else equivalence.fingerprint,
        "instructions": fingerprint_instructions(samples, equivalence) if asks else [],
        "reward_model": None if reward_model is None else weights_fingerprint(reward_model),
        "reward_processing_class": None if reward_model is None else tokenizer_fingerprint(tokenizer),
        **{name: options[name] for name in names},
    }


def tokenize_preferences(
    dataset: Dataset, processing_class: PreTrainedTokenizerBase, max_length: int | None = None
) -> Dataset:
    """
    Adds the token ids of both sides of each pair, with EOS for finished completions only.

    `trl.RewardTrainer` appends EOS to all text that it tokenizes, but it does not change token ids. If truncation
    makes the sides of a pair equal, the pair is dropped. The number of dropped pairs is logged.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preferences in TRL's format, as text or messages, with or without `prompt`. `chosen_finished` and
            `rejected_finished` say which completions are finished. Without them, or with `None`, all are. The columns
            `tools` and `chat_template_kwargs` are optional arguments of the chat template, as in TRL.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        max_length (`int`, *optional*):
            Longest side, in tokens. A longer side loses the beginning of its prompt. TRL instead drops pairs that are
            longer than its own `max_length`.

    Returns:
        `datasets.Dataset`: The dataset with `chosen_ids` and `rejected_ids`, and `candidate_ids` if it has
        `candidates` and `candidates_finished`.

    Raises:
        ValueError: If a column is missing, or for the same reasons as [`scoring_ids`].
    """
    dataset = require_columns(dataset, ["chosen", "rejected"], "dataset")
    dataset = dataset.map(
        _add_ids,
        batched=True,
        fn_kwargs={"processing_class": processing_class, "max_length": max_length},
        desc="Tokenizing preferences",
    )
    if max_length is not None:
        warn_of_cut_prompts(sum(dataset[_OVERLONG]), 2 * len(dataset), max_length)
    kept = dataset.filter(lambda overlong, chosen, rejected: not overlong or chosen != rejected, input_columns=_IDS)
    if len(kept) < len(dataset):
        logger.warning(
            f"{len(dataset) - len(kept)} of {len(dataset)} pairs are equal on both sides after truncation to "
            f"`max_length`={max_length} tokens. They are dropped. Raise `max_length` to keep them."
        )
    return kept.remove_columns(_OVERLONG)


_OVERLONG = "rlp_overlong"
_IDS = [_OVERLONG, "chosen_ids", "rejected_ids"]


def _add_ids(
    batch: dict[str, list], processing_class: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, list]:
    size = len(batch["chosen"])
    empty: str | list = "" if isinstance(batch["chosen"][0], str) else []
    prompts = batch["prompt"] if "prompt" in batch else [empty] * size
    options = list_template_options(batch) or [{}] * size
    columns, overlong = {}, [0] * size
    for side in ("chosen", "rejected"):
        finished = list_finished(batch, side)
        ids = batch_scoring_ids(processing_class, prompts, batch[side], finished, template_options=options)
        if max_length is not None:
            overlong = [count + (len(row) > max_length) for count, row in zip(overlong, ids, strict=True)]
        columns[f"{side}_ids"] = cut_prompts(ids, processing_class, max_length)
    if {"candidates", "candidates_finished"} <= set(batch):  # `candidates` alone is a column of the user
        rows = zip(prompts, batch["candidates"], batch["candidates_finished"], options, strict=True)
        columns["candidate_ids"] = [
            texts
            and batch_scoring_ids(
                processing_class, [prompt] * len(texts), texts, finished, template_options=[kwargs] * len(texts)
            )
            for prompt, texts, finished, kwargs in rows
        ]
        columns["candidate_ids"] = [
            ids and cut_prompts(ids, processing_class, max_length) for ids in columns["candidate_ids"]
        ]
    return {**columns, _OVERLONG: overlong}


def _label_shard(
    label: Label, names: list[str], shard_size: int, index: int, batch: dict[str, list], advance: Callable[[int], Any]
) -> dict[str, list]:
    """Returns the pairs of a shard, and a row with the reason for each prompt without a pair."""
    start = index * shard_size
    pairs, rejections = label.label(batch, range(start, start + shard_size))
    advance(len(batch["prompt"]))
    records = [*pairs, *({_REASON: reason} for reason in rejections.elements())]
    return {name: [record.get(name) for record in records] for name in (*names, _REASON)}


def _separate_pairs(rows: Dataset) -> tuple[Dataset, dict[str, int]]:
    """Separates the pairs from the reasons of the prompts without a pair."""
    reasons = rows.select_columns(_REASON).with_format("arrow")[:][_REASON]
    counts = pc.value_counts(reasons.drop_null()).to_pylist()
    rejections = Counter({count["values"]: count["counts"] for count in counts})
    pairs = rows.select(np.flatnonzero(reasons.is_null().to_numpy())).remove_columns(_REASON)
    if not len(pairs):
        raise NoPairsError(_explain_no_pairs(rejections))
    logger.info(f"{len(pairs)} of {len(rows)} prompts have a pair. Rejected: {dict(rejections)}.")
    return pairs, {reason: rejections[reason] for reason in REJECTIONS}


def _explain_no_pairs(rejections: Counter) -> str:
    most_common, _ = rejections.most_common(1)[0]
    return f"None of {rejections.total()} prompts has a pair. Rejected: {dict(rejections)}. {REJECTIONS[most_common]}"
