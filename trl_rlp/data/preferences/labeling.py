"""Makes preferences from batches of policy samples. A result does not depend on the other rows of its batch."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.columns import Batch, read_columns, require_sample_columns
from trl_rlp.data.groups.clustering import has_groups, hold_equivalence, restore_share
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.judges.judge import Judge
from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.preferences.pairing import (
    CHOSEN,
    GENERATORS,
    GROUP_GENERATORS,
    JUDGE_GENERATORS,
    REWARD_GENERATORS,
    Pair,
    PairingSettings,
    Row,
    add_rewards,
    count_group_sizes,
)
from trl_rlp.data.scoring import score
from trl_rlp.data.template_options import TEMPLATE_COLUMNS
from trl_rlp.data.turns import build_preference_sides, split_assistant_prefill
from trl_rlp.data.worker_models import hold_reward_model, prepare_worker
from trl_rlp.storage.data_files import find_json_type


ROW_NUMBER = "sample_row"
"""The column with the number of a row in all samples."""


class Label:
    """
    Makes preferences from batches of policy samples. [`synthesize_preferences`] is built on it.

    It runs in `Dataset.map` and in Ray Data's `map_batches`. The result of a row does not depend on other rows. Each
    process loads the reward model when it needs it for the first time. Rows without a pair are left out. A batch
    without any pair gives no rows, and columns of the same types.

    Args:
        reward_model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Frozen r_φ of step 2, or its folder or Hub name. Needed by `reward`, `majority_best` and
            `chosen="reward"`. A loaded model cannot be sent to other processes.
        method (`str`, *optional*, defaults to `"spg"`):
            Key of `GENERATORS`, as in [`synthesize_preferences`].
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of a loaded `reward_model`.
        equivalence (*optional*):
            Decides which completions mean the same, as for [`Group`]. Needed by `spg`, `select_all` and
            `majority_best` if the batches have no groups.
        judge (`Callable`, *optional*):
            For `rlaif`, as in [`synthesize_preferences`]. It is pickled as it is, with the weights of a model that it
            holds. For other processes, pass one that asks a server.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest confidence that is accepted, in [0, 1] (γ in the paper). For `spg` and `majority_best`.
        chosen (`str`, *optional*, defaults to `"reward"`):
            How y_w is picked from the largest group: `"reward"` or, not for `majority_best`, `"random"`.
        keep_candidates (`bool`, *optional*, defaults to `False`):
            Whether to keep all completions that could be y_l.
        allow_unfinished_chosen (`bool`, *optional*, defaults to `False`):
            Whether a completion that stopped at the token limit can be y_w.
        max_length (`int`, *optional*):
            Longest input of the reward model, in tokens. A longer input loses the beginning of its prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, at least 0. The draws of a row depend only on the seed and on the content of the row.
        options:
            Further arguments of [`load_reward_model`] for a folder or Hub name, such as `dtype`.

    Raises:
        TypeError: If there are options for a loaded model, or a tokenizer for a named one.
        ValueError: If an argument is out of range, or one that the method needs is missing.

    Example:

    ```python
    >>> label = Label("my-reward-model", "spg", seed=0)
    >>> pairs = groups.map(label, batched=True, with_indices=True, remove_columns=groups.column_names)
    ```
    """

    def __init__(
        self,
        reward_model: str | Path | PreTrainedModel | PeftModel | None = None,
        method: str = "spg",
        *,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
        equivalence: Equivalence | str | Path | Callable[[], Equivalence] | None = None,
        judge: Judge | None = None,
        threshold: float = 0.5,
        chosen: str = "reward",
        keep_candidates: bool = False,
        allow_unfinished_chosen: bool = False,
        max_length: int | None = None,
        seed: int = 0,
        **options: Any,
    ):
        _check_options(method, chosen, threshold, keep_candidates, seed)
        self._reward_model = None
        if reward_model is not None:
            self._reward_model = hold_reward_model(reward_model, reward_processing_class, options)
        _check_labelers(method, chosen, reward_model, judge)
        self._equivalence = None if equivalence is None else hold_equivalence(equivalence)
        self.method = method
        self.keep_candidates = keep_candidates
        self._max_length = max_length
        self._settings = PairingSettings(None, None, judge, threshold, chosen, allow_unfinished_chosen, seed)

    def __call__(self, batch: Batch, indices: Sequence[int] | int | None = None, rank: int | None = None) -> pa.Table:
        """
        Makes the preferences of a batch.

        Args:
            batch (`Mapping` or `pyarrow.Table`):
                Columns `prompt`, `completions` and `finished`, and groups unless there is an equivalence, as for
                [`read_columns`]. The types of a table are kept. Those of lists are derived from their values.
            indices (`Sequence[int]` or `int`, *optional*):
                Number of each row in all samples, which `datasets` passes with `with_indices=True`. It becomes the
                column `sample_row`. Defaults to a column `sample_row` of the batch, or else to `None` for each row.
                With `with_rank=True` alone, `datasets` passes the rank here.
            rank (`int`, *optional*):
                Number of the worker, which selects its accelerator.

        Returns:
            `pyarrow.Table`: Preferences with the columns of [`synthesize_preferences`].

        Raises:
            TypeError, ValueError: If the batch does not hold policy samples, or lacks groups and there is no
                equivalence.
        """
        if isinstance(indices, int):
            indices, rank = None, indices
        prepare_worker(rank)
        columns = read_columns(batch)
        require_sample_columns(columns, ["prompt", "completions", "finished"])
        self.require_groups(columns)
        if self.method in GROUP_GENERATORS:
            columns |= _restore_shares(columns)
        numbers = columns.get(ROW_NUMBER, [None] * len(columns["prompt"])) if indices is None else indices
        records, _ = self.label(columns, numbers)
        is_table = isinstance(batch, pa.Table)
        types = Features.from_arrow_schema(batch.schema) if is_table else _find_features(columns)
        features = build_features(types, self.keep_candidates)
        values = {name: [record.get(name) for record in records] for name in features}
        return Dataset.from_dict(values, features=features).with_format("arrow")[:]

    def label(self, columns: Mapping[str, list], numbers: Sequence[int | None]) -> tuple[list[Row], Counter]:
        """
        Makes the preferences of policy samples that are already checked.

        Args:
            columns (`Mapping[str, list]`):
                Columns as plain Python values.
            numbers (`Sequence[int]`):
                Number of each row in all samples.

        Returns:
            `tuple[list[dict], Counter]`: The preferences in the order of the rows, and the number of rows without one
            for each reason.
        """
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if not rows:
            return [], Counter()
        rewards = self._build_rewards(rows)
        equivalence = None if self._equivalence is None else self._equivalence.get()
        settings = PairingSettings(**{**vars(self._settings), "equivalence": equivalence, "rewards": rewards})
        pairs, rejections = GENERATORS[self.method](rows, settings)
        build = functools.partial(build_record, keep_candidates=self.keep_candidates)
        pairs = add_rewards(pairs, rewards)
        return [build(rows[pair.row], pair, numbers[pair.row]) for pair in pairs], rejections

    def require_groups(self, columns: Mapping[str, list] | Sequence[str]) -> None:
        """
        Checks that samples have groups, or that there is an equivalence, if the method groups completions.

        Args:
            columns (`Mapping` or `Sequence[str]`):
                Columns of the samples by name, or their names.

        Raises:
            ValueError: If both are missing.
        """
        if self.method in GROUP_GENERATORS and self._equivalence is None and not has_groups(columns):
            raise ValueError(
                f"`equivalence` is None, but `method`={self.method!r} groups completions by meaning. Pass an "
                "equivalence from `trl_rlp.data.groups`, or samples that `cluster` has grouped."
            )

    def _build_rewards(self, rows: list[Row]) -> CompletionRewards | None:
        if self._reward_model is None:
            return None
        score_rows = functools.partial(score, *self._reward_model.get(), max_length=self._max_length)
        return CompletionRewards(rows, score_rows)


def build_features(features: Features, keep_candidates: bool) -> Features:
    """
    Returns the types of the columns of preferences.

    Args:
        features ([`~datasets.Features`]):
            Types of the columns of policy samples.
        keep_candidates (`bool`):
            Whether there are columns of candidates.

    Returns:
        [`~datasets.Features`]: The types by name.
    """
    is_chat = not isinstance(features["prompt"], Value)
    side = List({"role": Value("string"), "content": Value("string")}) if is_chat else Value("string")
    template_features = {name: features[name] for name in TEMPLATE_COLUMNS if name in features}
    columns = {"prompt": features["prompt"], "chosen": side, "rejected": side, **template_features, **_AUDIT_FEATURES}
    if keep_candidates:
        columns |= {"candidates": List(Value("string")), "candidates_finished": List(Value("bool"))}
    return Features(columns)


_AUDIT_FEATURES = {
    ROW_NUMBER: Value("int64"),
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


def _find_features(columns: dict[str, list]) -> Features:
    """Derives the types of plain values. Dicts that differ in their keys, as in tool calls, are JSON, not structs."""
    types = {}
    for name in [name for name in ("prompt", *TEMPLATE_COLUMNS) if name in columns]:
        types[name] = find_json_type(columns[name]) or Dataset.from_dict({name: columns[name]}).features[name]
    return Features(types)


def _restore_shares(columns: dict[str, list]) -> dict[str, list]:
    """Restores confidences that the NumPy format of `datasets` has rounded to 32 bits. They are compared exactly."""
    sizes = list(map(len, columns["completions"]))
    names = [name for name in ("confidence", "confidence_upper") if name in columns]
    return {name: list(map(restore_share, columns[name], sizes)) for name in names}


def build_record(row: Row, pair: Pair, number: int | None, keep_candidates: bool) -> Row:
    """
    Builds a preference from a pair.

    Args:
        row (`dict`):
            Policy samples of one prompt.
        pair ([`Pair`]):
            The pair.
        number (`int`, *optional*):
            Number of the row in all samples.
        keep_candidates (`bool`):
            Whether to keep all completions that could be y_l.

    Returns:
        `dict`: The columns of [`build_features`].
    """
    indices = {"chosen": pair.chosen, "rejected": pair.rejected}
    prompt, sides = build_preference_sides(row["prompt"], [row["completions"][index] for index in indices.values()])
    record = {"prompt": prompt, ROW_NUMBER: number, **dict(zip(indices, sides, strict=True))}
    record |= {name: row[name] for name in TEMPLATE_COLUMNS if name in row}
    for side, index in indices.items():
        record[f"{side}_finished"] = row["finished"][index]
        record[f"{side}_reward"] = getattr(pair, f"{side}_reward")
        record[f"{side}_cluster_id"] = None if pair.cluster_ids is None else pair.cluster_ids[index]
    record["confidence"] = pair.confidence
    record["label_probability"] = pair.probability
    record["group_sizes"] = None if pair.cluster_ids is None else list(count_group_sizes(pair.cluster_ids).values())
    if keep_candidates:
        _, prefill = split_assistant_prefill(row["prompt"])
        record["candidates"] = [prefill + row["completions"][i] for i in pair.alternatives]
        record["candidates_finished"] = [row["finished"][i] for i in pair.alternatives]
    return record


def _check_options(method: str, chosen: str, threshold: float, keep_candidates: bool, seed: int) -> None:
    if method not in GENERATORS:
        raise ValueError(f"`method` must be one of {sorted(GENERATORS)}, got {method!r}.")
    if chosen not in CHOSEN:
        raise ValueError(f"`chosen` must be one of {sorted(CHOSEN)}, got {chosen!r}.")
    if method == "majority_best" and chosen != "reward":
        raise ValueError(
            f"`chosen` must be 'reward' with `method`='majority_best', which picks by reward, got {chosen!r}."
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a share of the completions and must be in [0, 1], got {threshold}. Try 0.5.")
    if keep_candidates and method not in GROUP_GENERATORS:
        raise ValueError(
            f"`keep_candidates` must be False with `method`={method!r}, because this method labels one pair and knows "
            "no other candidates for the rejected side."
        )
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")


def _check_labelers(method: str, chosen: str, reward_model: Any, judge: Judge | None) -> None:
    needs_rewards = method in REWARD_GENERATORS or (method in GROUP_GENERATORS and chosen == "reward")
    if reward_model is None and needs_rewards:
        raise ValueError(
            f"`reward_model` is None, but `method`={method!r} with `chosen`={chosen!r} scores completions. Pass the "
            'reward model. `spg` and `select_all` also accept `chosen="random"`.'
        )
    if method in JUDGE_GENERATORS and judge is None:
        raise ValueError(
            f"`judge` is None, but `method`={method!r} needs a judge for its labels. Pass one from "
            "`trl_rlp.data.judges`."
        )
