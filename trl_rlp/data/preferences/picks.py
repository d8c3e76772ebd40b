"""The picks of `majority_best` as data for supervised training."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset, Features
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.anchors.semantic_anchors import prompt_key
from trl_rlp.data.groups.clustering import find_largest_group, has_groups
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.preferences.labeling import build_features
from trl_rlp.data.scoring import score
from trl_rlp.data.template_options import TEMPLATE_COLUMNS
from trl_rlp.data.turns import build_preference_sides, split_assistant_prefill
from trl_rlp.data.validation import require_columns, require_samples


logger = logging.get_logger(__name__)

_ROWS_AT_ONCE = 10_000

Agreement = tuple[dict[str, Any], list[int]]
"""A row whose completions are one text, and its finished completions."""


def collect_picks(
    samples: Dataset,
    preferences: Dataset,
    *,
    reward_model: PreTrainedModel | PeftModel,
    reward_processing_class: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> Dataset:
    """
    Collects the picks of the generator `majority_best`: the best completion of each prompt with a clear majority.

    Ours and not the paper's. The pick of a prompt with a pair is its chosen completion. A prompt whose completions are
    all one text has no pair, but it has a pick: the finished completion with the highest reward. Only such prompts are
    scored. An unfinished completion is no pick, because a policy would learn not to end.

    The processes of `accelerate launch` share the batches, so each of them must call this function with the same data.

    Args:
        samples ([`~datasets.Dataset`]):
            The policy samples that `preferences` were made from.
        preferences ([`~datasets.Dataset`]):
            All pairs of [`synthesize_preferences`] with the method `majority_best`, from memory or from a file. If a
            pair is left out, its prompt has no pick.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The reward model that picked `chosen` (r_φ in the paper).
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `reward_model`.
        max_length (`int`, *optional*):
            Longest input of the reward model, in tokens, as for `preferences`.

    Returns:
        `datasets.Dataset`: Data in TRL's prompt-completion format, as text or messages, in the order of `samples`. The
        columns are `prompt`, `completion`, those of the chat template (`tools`, `chat_template_kwargs`) if the samples
        have them, `sample_row`, `confidence` (in [0, 1]) and `reward`.

    Raises:
        TypeError, ValueError: If `samples` are not policy samples, or `preferences` lack a column, have no row
            numbers, come from other samples, or were made by a method without groups.

    Example:

    ```python
    >>> models = {"reward_model": reward_model, "reward_processing_class": tokenizer}
    >>> pairs, _ = synthesize_preferences(samples, "majority_best", equivalence=ExactMatch(), **models)
    >>> picks = collect_picks(samples, pairs, **models)
    ```
    """
    samples = require_samples(samples, "samples")
    columns = ["prompt", "chosen", "chosen_finished", "chosen_reward", "confidence", "sample_row"]
    preferences = require_columns(preferences, columns, "preferences")
    _require_same_rows(samples, preferences)
    kept = [name for name in (*columns, *TEMPLATE_COLUMNS) if name in preferences.column_names]
    pairs = preferences.select(np.flatnonzero(preferences["chosen_finished"][:])).select_columns(kept)
    records = [{**row, "completion": row["chosen"], "reward": row["chosen_reward"]} for row in pairs]
    agreements = list(_find_agreements(samples, set(preferences["sample_row"])))
    rewards = functools.partial(
        score, reward_model, reward_processing_class, max_length=max_length, share_batches=True
    )
    records += _pick_best(agreements, CompletionRewards([row for row, _ in agreements], rewards))
    records.sort(key=lambda record: record["sample_row"])
    features = _build_features(samples.features)
    picks = Dataset.from_dict({name: [row.get(name) for row in records] for name in features}, features=features)
    logger.info(f"{len(picks)} of {len(samples)} prompts have a pick.")
    return picks


def _build_features(sample_features: Features) -> Features:
    """Returns the types of the columns. Those of `preferences` from a file may lack keys without any value."""
    types = build_features(sample_features, keep_candidates=False)
    types |= {"completion": types["chosen"], "reward": types["chosen_reward"]}
    names = ["prompt", "completion", *TEMPLATE_COLUMNS, "sample_row", "confidence", "reward"]
    return Features({name: types[name] for name in names if name in types})


def _require_same_rows(samples: Dataset, preferences: Dataset) -> None:
    """Checks that each pair comes from the row of the samples that it names, and from groups."""
    numbers = preferences["sample_row"][:]
    for name, remedy in _REMEDIES.items():
        if None in preferences[name]:
            raise ValueError(f"`preferences` has a row whose `{name}` is None. {remedy}")
    wrong = [number for number in numbers if not 0 <= number < len(samples)]
    if not wrong:
        prompts = zip(numbers, samples.select(numbers)["prompt"], preferences["prompt"], strict=True)
        wrong = [
            number
            for number, prompt, expected in prompts
            if prompt_key(split_assistant_prefill(prompt)[0]) != prompt_key(expected)
        ]
    if wrong:
        raise ValueError(
            f"`preferences` has a pair of row {wrong[0]} of its samples, but `samples` has {len(samples)} rows, or "
            "another prompt in this one. Pass the samples that the preferences were made from."
        )


_REMEDIES = {
    "sample_row": "Pass the pairs of `synthesize_preferences`, or those of `Label` with `with_indices=True`.",
    "confidence": 'Its method has no groups. Pass the pairs of the method "majority_best".',
}


def _find_agreements(samples: Dataset, paired: set[int]) -> Iterator[Agreement]:
    """Finds the prompts without a pair whose completions are one text. They mean the same by any equivalence."""
    names = ["prompt", "completions", "finished", *TEMPLATE_COLUMNS, "cluster_ids", "confidence"]
    samples = samples.select_columns([name for name in names if name in samples.column_names])
    rest = [row for row in range(len(samples)) if row not in paired]
    for start in range(0, len(rest), _ROWS_AT_ONCE):
        numbers = rest[start : start + _ROWS_AT_ONCE]
        for number, row in zip(numbers, samples.select(numbers), strict=True):
            texts = {normalize_text(text) for text in row["completions"]}
            group = range(len(row["completions"]))
            if has_groups(row):
                group = find_largest_group(row["cluster_ids"])
            members = [i for i in group if row["finished"][i]]
            if len(texts) == 1 and "" not in texts and members:
                yield {**row, "sample_row": number, "confidence": row.get("confidence", 1.0)}, members


def _pick_best(agreements: list[Agreement], rewards: CompletionRewards) -> list[dict[str, Any]]:
    if not agreements:
        return []
    rewards.fetch([(i, member) for i, (_, members) in enumerate(agreements) for member in members])
    records = []
    for i, (row, members) in enumerate(agreements):
        values = rewards.fetch([(i, member) for member in members])
        best = members[int(np.argmax(values))]
        prompt, (completion,) = build_preference_sides(row["prompt"], [row["completions"][best]])
        records.append({**row, "prompt": prompt, "completion": completion, "reward": max(values)})
    return records
