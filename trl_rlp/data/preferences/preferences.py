"""Synthetic preferences from policy samples, in TRL's preference format."""

import functools
from collections import Counter
from typing import Any

from datasets import Dataset, Features, List, Value
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.judges.judge import Judge
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.output_rewards import OutputRewards
from trl_rlp.data.preferences.pairing import CHOSEN, GENERATORS, GROUP_METHODS, Pair, Request, group_sizes
from trl_rlp.data.scoring import batch_scoring_ids, cut_prompts, score, warn_of_cut_prompts
from trl_rlp.data.turns import preference_sides, split_assistant_prefill
from trl_rlp.data.validation import require_columns, require_samples


__all__ = ["CHOSEN", "GENERATORS", "REJECTIONS", "mix_preferences", "synthesize_preferences", "tokenize_preferences"]

logger = logging.get_logger(__name__)

REJECTIONS: dict[str, str] = {
    "below_threshold": "Lower `threshold`, or check that `equivalence` tells same from different.",
    "single_member": "Sample more completions a prompt, so that some agree.",
    "all_agree": "Sample at a higher temperature, or more completions, so that some differ.",
    "nothing_left": "Let completions finish (`max_new_tokens`), or pass `allow_unfinished_chosen=True`.",
    "ties": "Use a judge or a reward model that tells the outputs apart.",
}
"""Why a prompt makes no pair, and what to do about it."""


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
) -> tuple[Dataset, dict[str, int]]:
    """
    Makes synthetic preferences D̂ of policy samples P: at most one pair a prompt.

    With `spg`, outputs are grouped by meaning. Where the largest group holds at least a share γ of the outputs, and at
    least two, y_w is its member with the highest reward and y_l is drawn uniformly from the outputs outside it. Empty
    outputs belong to no group and can only be y_l; an unfinished one is y_w only if that is asked for.

    Args:
        samples (`datasets.Dataset`):
            Policy samples: `prompt`, `completions`, `finished`. With `cluster_ids` and `confidence` (from
            [`cluster`]) these groups are taken and `equivalence` is not used.
        method (`str`):
            `spg`, `select_all` (γ = 0), `reward` (two outputs, labeled by the reward model) or `rlaif` (two outputs,
            labeled by the judge).
        equivalence (*optional*):
            Which outputs mean the same, see `trl_rlp.data.groups`. For `spg` and `select_all`.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Frozen r_φ of step 2, which must not be the model in training. Needed by `reward` and by `chosen="reward"`;
            elsewhere it fills the reward columns.
        reward_processing_class (`transformers.PreTrainedTokenizerBase`, *optional*):
            Tokenizer of `reward_model`.
        judge (`Callable`, *optional*):
            For `rlaif`: `judge(prompts, firsts, seconds)` gives the probabilities in [0, 1] that the first is better.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest confidence that is accepted, between 0 and 1. γ in the paper. For `spg`.
        chosen (`str`, *optional*, defaults to `"reward"`):
            For `spg` and `select_all`: y_w is the member with the highest `reward` (the paper's), or a `random` one.
        keep_candidates (`bool`, *optional*, defaults to `False`):
            Whether to keep all outputs that could be y_l, so that the collator draws one anew each epoch. For `spg`
            and `select_all`.
        allow_unfinished_chosen (`bool`, *optional*, defaults to `False`):
            Whether an output that was cut by the token limit may be y_w.
        max_length (`int`, *optional*):
            Longest input of the reward model, in tokens; what is longer loses the beginning of its prompt.
        seed (`int`, *optional*, defaults to `0`):
            Decides every draw, at least 0. A row's draws depend on the seed and its own content alone.

    Returns:
        `tuple[datasets.Dataset, dict[str, int]]`: preferences in TRL's format with their audit columns (see
        docs/synthetic_preferences.md), and the number of prompts that made no pair by reason, the keys of
        `REJECTIONS`.

    Raises:
        ValueError: if an argument is out of range or one that the method needs is missing, the samples are not policy
            samples or were clustered for another threshold, a reward is NaN or infinite, or no prompt makes a pair.

    Reference:
        SPG, https://arxiv.org/abs/2403.19279; the other methods are those of its Table 5.
    """
    require_samples(samples, "samples")
    _require_choices(method, chosen, threshold, keep_candidates, seed)
    if reward_model is not None and reward_processing_class is None:
        raise ValueError("`reward_processing_class` is None. Pass the tokenizer of `reward_model`.")
    rewards = None
    if reward_model is not None:
        score_rows = functools.partial(score, reward_model, reward_processing_class, max_length=max_length)
        rewards = OutputRewards(samples, score_rows)
    request = Request(equivalence, rewards, judge, threshold, chosen, allow_unfinished_chosen, seed)
    _require_labelers(samples, method, request)
    if method == "spg" and threshold * len(samples[0]["completions"]) <= 1:
        logger.warning(
            f"`threshold`={threshold} of {len(samples[0]['completions'])} completions is at most one output, so every "
            "prompt on which two outputs agree is accepted. Sample more completions or raise `threshold`."
        )
    pairs, rejections = GENERATORS[method](samples, request)
    if not pairs:
        raise ValueError(_why_nothing(rejections))
    logger.info(f"{len(pairs)} of {len(samples)} prompts made a pair; rejected: {dict(rejections)}.")
    return _as_dataset(samples, pairs, rewards, keep_candidates), {reason: rejections[reason] for reason in REJECTIONS}


def tokenize_preferences(
    dataset: Dataset, processing_class: PreTrainedTokenizerBase, max_length: int | None = None
) -> Dataset:
    """
    Adds the token ids of both sides of each pair, with EOS for finished outputs only.

    `trl.RewardTrainer` appends EOS to all text it tokenizes, and takes ids as they are. Pairs whose sides become equal
    by cutting are dropped, with a logged count.

    Args:
        dataset (`datasets.Dataset`):
            Preferences in TRL's format, with or without `prompt`, text or messages. `chosen_finished` and
            `rejected_finished` say which outputs ended by themselves; where they are missing, all did.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer of the reward model.
        max_length (`int`, *optional*):
            Longest side, in tokens; what is longer loses the beginning of its prompt. TRL drops pairs that are longer
            than its own `max_length` instead.

    Returns:
        `datasets.Dataset`: the same with `chosen_ids` and `rejected_ids`, and `candidate_ids` where there are
        `candidates`.

    Raises:
        ValueError: if a column is missing, or as [`scoring_ids`].
    """
    require_columns(dataset, ["chosen", "rejected"], "dataset")
    dataset = dataset.map(
        _add_ids,
        batched=True,
        fn_kwargs={"processing_class": processing_class, "max_length": max_length},
        desc="Tokenizing preferences",
    )
    if max_length is not None:
        warn_of_cut_prompts(sum(dataset["overlong"]), 2 * len(dataset), max_length)
    kept = dataset.filter(lambda overlong, chosen, rejected: not overlong or chosen != rejected, input_columns=_IDS)
    if len(kept) < len(dataset):
        logger.warning(
            f"{len(dataset) - len(kept)} of {len(dataset)} pairs are equal on both sides once cut to "
            f"`max_length`={max_length} tokens, and were dropped. Raise `max_length` to keep them."
        )
    return kept.remove_columns("overlong")


_IDS = ["overlong", "chosen_ids", "rejected_ids"]


def _add_ids(
    batch: dict[str, list], processing_class: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, list]:
    size = len(batch["chosen"])
    empty: str | list = "" if isinstance(batch["chosen"][0], str) else []
    prompts = batch["prompt"] if "prompt" in batch else [empty] * size
    columns, overlong = {}, [0] * size
    for side in ("chosen", "rejected"):
        # Human pairs in a mixed data set say nothing about it.
        finished = [flag is not False for flag in batch.get(f"{side}_finished", [True] * size)]
        ids = batch_scoring_ids(processing_class, prompts, batch[side], finished)
        if max_length is not None:
            overlong = [count + (len(row) > max_length) for count, row in zip(overlong, ids, strict=True)]
            ids, _ = cut_prompts(ids, processing_class, max_length)
        columns[f"{side}_ids"] = ids
    if "candidates" in batch:
        columns["candidate_ids"] = [
            None if texts is None else batch_scoring_ids(processing_class, [prompt] * len(texts), texts, finished)
            for prompt, texts, finished in zip(prompts, batch["candidates"], batch["candidates_finished"], strict=True)
        ]
        if max_length is not None:
            columns["candidate_ids"] = [
                ids and cut_prompts(ids, processing_class, max_length)[0] for ids in columns["candidate_ids"]
            ]
    return {**columns, "overlong": overlong}


def _require_choices(method: str, chosen: str, threshold: float, keep_candidates: bool, seed: int) -> None:
    if method not in GENERATORS:
        raise ValueError(f"`method` must be one of {sorted(GENERATORS)}, got {method!r}.")
    if chosen not in CHOSEN:
        raise ValueError(f"`chosen` must be one of {sorted(CHOSEN)}, got {chosen!r}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a share of the completions, between 0 and 1, got {threshold}. Try 0.5.")
    if keep_candidates and method not in GROUP_METHODS:
        raise ValueError(
            f"`keep_candidates` must be False with `method`={method!r}, which labels one pair and knows no other "
            "outputs that are worse."
        )
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")


def _require_labelers(samples: Dataset, method: str, request: Request) -> None:
    is_grouped = {"cluster_ids", "confidence"} <= set(samples.column_names)
    needs_groups = method in GROUP_METHODS
    if needs_groups and request.equivalence is None and not is_grouped:
        raise ValueError(
            f"`equivalence` is None, but `method`={method!r} groups outputs by meaning. Pass one of "
            "`trl_rlp.data.groups.equivalence`, or samples that `cluster` has grouped."
        )
    if request.rewards is None and (method == "reward" or (needs_groups and request.chosen == "reward")):
        raise ValueError(
            f"`reward_model` is None, but `method`={method!r} with `chosen`={request.chosen!r} scores outputs. Pass "
            'the reward model, or `chosen="random"` where there are groups.'
        )
    if method == "rlaif" and request.judge is None:
        raise ValueError(
            '`judge` is None, but `method`="rlaif" is labeled by one. Pass one of `trl_rlp.data.judges.judge`.'
        )


def _why_nothing(rejections: Counter) -> str:
    most_common, _ = rejections.most_common(1)[0]
    return (
        f"No preference was accepted from {rejections.total()} prompts, rejected: {dict(rejections)}. "
        f"{REJECTIONS[most_common]}"
    )


def _as_dataset(samples: Dataset, pairs: list[Pair], rewards: OutputRewards | None, keep_candidates: bool) -> Dataset:
    prompt = samples.features["prompt"]
    is_chat = not isinstance(prompt, Value)
    side = List({"role": Value("string"), "content": Value("string")}) if is_chat else Value("string")
    features = {"prompt": prompt, "chosen": side, "rejected": side, **_AUDIT}
    if keep_candidates:
        features |= {"candidates": List(Value("string")), "candidates_finished": List(Value("bool"))}
    outputs = [(pair.row, i) for pair in pairs for i in (pair.chosen, pair.rejected)]
    values = [None] * len(outputs) if rewards is None else rewards.fetch(outputs)
    records = []
    for pair, chosen_reward, rejected_reward in zip(pairs, values[::2], values[1::2], strict=True):
        record = _record(samples[pair.row], pair, keep_candidates)
        records.append({**record, "chosen_reward": chosen_reward, "rejected_reward": rejected_reward})
    return Dataset.from_list(records, features=Features(features))


_AUDIT = {
    "sample_row": Value("int64"),
    "confidence": Value("float64"),
    "group_sizes": List(Value("int64")),
    "chosen_cluster_id": Value("int64"),
    "rejected_cluster_id": Value("int64"),
    "chosen_reward": Value("float64"),
    "rejected_reward": Value("float64"),
    "label_probability": Value("float64"),
    "chosen_finished": Value("bool"),
    "rejected_finished": Value("bool"),
}


def _record(row: dict[str, Any], pair: Pair, keep_candidates: bool) -> dict[str, Any]:
    places = {"chosen": pair.chosen, "rejected": pair.rejected}
    prompt, sides = preference_sides(row["prompt"], [row["completions"][index] for index in places.values()])
    record = {"prompt": prompt, "sample_row": pair.row, **dict(zip(places, sides, strict=True))}
    for side, index in places.items():
        record[f"{side}_finished"] = row["finished"][index]
        record[f"{side}_cluster_id"] = None if pair.cluster_ids is None else pair.cluster_ids[index]
    record["confidence"] = pair.confidence
    record["label_probability"] = pair.probability
    record["group_sizes"] = None if pair.cluster_ids is None else list(group_sizes(pair.cluster_ids).values())
    if keep_candidates:
        _, begun = split_assistant_prefill(row["prompt"])
        record["candidates"] = [begun + row["completions"][i] for i in pair.alternatives]
        record["candidates_finished"] = [row["finished"][i] for i in pair.alternatives]
    return record
