"""Preferences from a policy in training, against the anchors of the initial policy."""

import functools
from collections import Counter
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.columns import require_sample_columns
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.groups.instruction import list_instruction_columns, require_instruction_column
from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.preferences.labeling import build_features, build_record
from trl_rlp.data.preferences.pairing import (
    CHOSEN,
    NoPairsError,
    Pair,
    Row,
    add_rewards,
    build_row_generator,
    pick_chosen,
)
from trl_rlp.data.scoring import score
from trl_rlp.data.template_options import TEMPLATE_COLUMNS
from trl_rlp.data.validation import require_columns


logger = logging.get_logger(__name__)

REASONS: dict[str, str] = {
    "no_anchor": "Use prompts of the anchors, or lower `threshold` when you make the anchors.",
    "all_agree": "Record more completions, or sample them at a higher temperature.",
    "nothing_left": "Let completions finish.",
}
"""The reasons why a prompt has no pair, and what to do about each."""


def pair_with_anchors(
    rollouts: Dataset,
    comparison: AnchorComparison,
    *,
    reward_model: PreTrainedModel | PeftModel | None = None,
    reward_processing_class: PreTrainedTokenizerBase | None = None,
    chosen: str = "reward",
    max_length: int | None = None,
    seed: int = 0,
) -> tuple[Dataset, dict[str, int]]:
    """
    Builds preferences from the completions of a policy in training, with at most one pair per row.

    Not part of the paper. Published SPG groups the completions of the current policy. A policy that drifts can then
    make its own errors the majority. Here, each completion is compared with the anchor of its prompt, which comes from
    the initial policy. y_l is drawn uniformly from the completions that do not mean what the anchor means. y_w is the
    one with the highest reward among the members of the anchor's group and the completions that mean the same. Only
    finished texts can be y_w. Empty completions can only be y_l.

    Every process of `accelerate launch` must call it with the same arguments. They share the questions and the forward
    passes, and each gets the same pairs.

    Args:
        rollouts ([`~datasets.Dataset`]):
            `prompt`, `completions` and `finished`, and the column that the equivalence names as the instruction. Rows
            may have different numbers of completions.
        comparison ([`AnchorComparison`]):
            Compares the completions with the anchors. It asks only about texts that it does not remember.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reward model that picks y_w. Needed by `chosen="reward"`. Otherwise it only fills the reward columns.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of `reward_model`.
        chosen (`str`, *optional*, defaults to `"reward"`):
            How y_w is picked: `"reward"` (the highest reward) or `"random"`.
        max_length (`int`, *optional*):
            Longest input of the reward model, in tokens. A longer input loses the beginning of its prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, at least 0. The draws of a row depend only on the seed and on the content of the row.

    Returns:
        `tuple[datasets.Dataset, dict[str, int]]`: Preferences with the columns of [`synthesize_preferences`], and the
        number of rows without a pair for each reason in [`REASONS`]. `confidence` is that of the anchor, and
        `sample_row` is the number of the row. The columns of groups are `None`.

    Raises:
        TypeError, ValueError: If an argument is out of range, or `rollouts` lack a column.
        NoPairsError: If no row has a pair.
        Exception: What the equivalence raises, on every process.

    Relations:
        For the samples that the anchors were made from, an equivalence that is transitive and `chosen="reward"`, the
        pairs are those of SPG.
    """
    _check_arguments(chosen, reward_model, reward_processing_class, seed)
    rollouts = require_columns(rollouts, ["prompt", "completions", "finished"], "rollouts")
    rows = _read_rows(rollouts, comparison.equivalence)
    drafts, counts = _draft_pairs(rows, _compare(rows, comparison), comparison.anchors, chosen, seed)
    if not drafts:
        most_common, _ = counts.most_common(1)[0]
        raise NoPairsError(f"None of {len(rows)} rows has a pair. Rejected: {dict(counts)}. {REASONS[most_common]}")
    rewards = None
    if reward_model is not None:
        options = {"max_length": max_length, "share_batches": True}
        rewards = CompletionRewards(rows, functools.partial(score, reward_model, reward_processing_class, **options))
    pairs = add_rewards(pick_chosen(drafts, rewards), rewards)
    records = [build_record(rows[pair.row], pair, pair.row, keep_candidates=False) for pair in pairs]
    features = build_features(rollouts.features, keep_candidates=False)
    logger.info(f"{len(pairs)} of {len(rows)} rows have a pair. Rejected: {dict(counts)}.")
    dataset = Dataset.from_dict({name: [record.get(name) for record in records] for name in features}, features)
    return dataset, {reason: counts[reason] for reason in REASONS}


def _check_arguments(chosen: str, reward_model: Any, reward_processing_class: Any, seed: int) -> None:
    if chosen not in CHOSEN:
        raise ValueError(f"`chosen` must be one of {sorted(CHOSEN)}, got {chosen!r}.")
    if reward_model is None and chosen == "reward":
        raise ValueError(
            "`reward_model` is None, but `chosen`='reward' scores completions. Pass it, or `chosen=\"random\"`."
        )
    if reward_model is not None and reward_processing_class is None:
        raise ValueError("`reward_processing_class` is None. Pass the tokenizer of `reward_model`.")
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")


def _read_rows(rollouts: Dataset, equivalence: Equivalence) -> list[Row]:
    require_instruction_column(rollouts, equivalence, "rollouts")
    names = ["prompt", "completions", "finished", *TEMPLATE_COLUMNS, *list_instruction_columns(equivalence)]
    columns = rollouts.select_columns([name for name in names if name in rollouts.column_names])[:]
    require_sample_columns(columns, ["prompt", "completions", "finished"])
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _compare(rows: list[Row], comparison: AnchorComparison) -> list[list[bool | None]]:
    """Compares all completions of all rows in one call."""
    names = [name for name in rows[0] if name not in ("completions", "finished")]
    columns = {name: [row[name] for row in rows for _ in row["completions"]] for name in names}
    columns["completion"] = [text for row in rows for text in row["completions"]]
    verdicts = iter(comparison.compare(columns, share_questions=True))
    return [[next(verdicts) for _ in row["completions"]] for row in rows]


def _draft_pairs(
    rows: list[Row], verdicts: list[list[bool | None]], anchors: SemanticAnchors, chosen: str, seed: int
) -> tuple[list[tuple[list[int], Pair]], Counter]:
    """
    Draws y_l of each row, and lists the completions that could be y_w. Adds the members of the anchor to rows that
    have a pair, so that y_w has an index in its row.
    """
    drafts, counts = [], Counter()
    for number, (row, are_same) in enumerate(zip(rows, verdicts, strict=True)):
        anchor = anchors.find(row["prompt"])
        outside = [i for i, is_same in enumerate(are_same) if not is_same]
        if anchor is None or not outside:
            counts["no_anchor" if anchor is None else "all_agree"] += 1
            continue
        extended = {
            **row,
            "completions": row["completions"] + anchor.members,
            "finished": row["finished"] + anchor.members_finished,
        }
        candidates = _list_candidates(extended, are_same)
        if not candidates:
            counts["nothing_left"] += 1
            continue
        generator = build_row_generator(seed, row)
        rejected = int(generator.choice(outside))
        shortlist = CHOSEN[chosen](candidates, generator)
        drafts.append((shortlist, Pair(number, -1, rejected, outside, confidence=anchor.confidence)))
        rows[number] = extended
    return drafts, counts


def _list_candidates(extended: Row, are_same: list[bool | None]) -> list[int]:
    """Lists what could be y_w, each text once: finished completions that mean the same, and finished members."""
    candidates: dict[str, int] = {}
    for i, (text, is_finished) in enumerate(zip(extended["completions"], extended["finished"], strict=True)):
        if is_finished and (i >= len(are_same) or are_same[i]):
            candidates.setdefault(text, i)
    return list(candidates.values())
