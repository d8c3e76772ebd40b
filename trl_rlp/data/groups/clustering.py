"""Clustering of completions: groups with the same meaning, and the confidence of the largest group."""

import functools
import inspect
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets
from transformers.utils import logging

from trl_rlp.data.columns import Batch, add_columns, read_columns, require_sample_columns
from trl_rlp.data.groups.equivalence import (
    RULES,
    EmbeddingEquivalence,
    Equivalence,
    NLIEquivalence,
    ask_equivalence,
    require_equivalence,
)
from trl_rlp.data.groups.group_search import Pair, PossibleGroup, search_groups
from trl_rlp.data.groups.instruction import fingerprint_instructions, list_instruction_columns, read_instructions
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.validation import require_samples
from trl_rlp.data.worker_models import WorkerModel, prepare_worker
from trl_rlp.storage.fingerprints import dataset_fingerprint
from trl_rlp.storage.shards import choose_shard_size, map_shards


logger = logging.get_logger(__name__)

SHARD_SIZE = 256
"""Smallest number of prompts per shard, if the user has not set it."""

_TYPES = {"cluster_ids": pa.list_(pa.int64()), "confidence": pa.float64(), "confidence_upper": pa.float64()}

# Number of prompts that are searched at the same time. It is large enough to fill batches of similar lengths. With
# more prompts, Python's garbage collector needs much of the time.
_PROMPTS_AT_ONCE = 256

_ROWS_PER_CHECK = 10_000


def cluster(
    samples: Dataset,
    equivalence: Equivalence,
    *,
    threshold: float = 0.5,
    complete_groups: bool = False,
    output_dir: str | Path | None = None,
    shard_size: int | None = None,
) -> Dataset:
    """
    Groups the completions of each prompt by meaning, and computes the confidence of each prompt.

    A completion joins the first group, in the order of opening, whose first completion means the same. If there is no
    such group, it opens a new one.

    confidence = |g̃| / |y|

    g̃ is the largest group, and y are all completions of the prompt. If several groups are equally large, g̃ is the one
    that was opened first. A prompt is accepted if its confidence is at least `threshold`.

    Completions that are equal after `equivalence.normalize` are compared once. Empty completions belong to no group.
    Comparing stops as soon as the decision and g̃ are certain. Both are exactly those of the full loop over the
    distinct completions.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions` and `finished`.
        equivalence ([`Equivalence`]):
            Decides which completions mean the same, for example [`NLIEquivalence`]. It gets pairs of many prompts in
            one call. If it has an attribute `instruction`, this decides which text it gets as the prompt.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest confidence that is accepted, in [0, 1] (γ in the paper). At 0 every prompt is accepted.
        complete_groups (`bool`, *optional*, defaults to `False`):
            Whether to find all groups of all prompts, which needs more comparisons. Without it, only the largest group
            of an accepted prompt is complete.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards. An interrupted call resumes from it.
        shard_size (`int`, *optional*):
            Number of prompts per shard. Defaults to 256, or to a thousandth of the prompts if that is more. Under
            `accelerate launch`, the processes share the shards, and every process must call the function.

    Returns:
        `datasets.Dataset`: `samples` with three more columns. Existing columns with these names are replaced.
            - `cluster_ids` (`list[int]`): The group of each completion, numbered in the order of opening. It is -1 for
              a completion that is empty or was not needed.
            - `confidence` (`float`, in [0, 1]): The share of the largest group. For a rejected prompt it is a lower
              bound, unless `complete_groups` is set.
            - `confidence_upper` (`float`, in [0, 1]): Equal to `confidence` for an accepted prompt and with
              `complete_groups`. For a rejected prompt it is an upper bound below `threshold`.

    Raises:
        TypeError: If `samples` is not a `datasets.Dataset`.
        TypeError: If `equivalence` is not an object with the members of [`Equivalence`].
        ValueError: If `threshold` is outside [0, 1], or `samples` are not policy samples, see [`require_samples`], or
            lack the column that `equivalence` names as the instruction, or `output_dir` holds the groups of another
            call.

    Relations:
        With [`ExactMatch`] as the equivalence, this is majority voting. [`Group`] does the same to batches of columns,
        for `Dataset.map` and Ray Data.

    Reference:
        The section on synthetic preference generation of [Lang et al. 2024](https://arxiv.org/abs/2403.19279) (γ). The
        loop is Algorithm 1 of [Kuhn et al. 2023](https://arxiv.org/abs/2302.09664).

    Example:

    ```python
    >>> row = {"prompt": "2 + 2?", "completions": ["4", "5", "4."], "finished": [True, True, True]}
    >>> grouped = cluster(Dataset.from_list([row]), ExactMatch())
    >>> grouped[0]["cluster_ids"], grouped[0]["confidence"]
    ([0, 1, 0], 0.6666666666666666)
    ```
    """
    samples = require_samples(samples, "samples")
    require_equivalence(equivalence)
    shard_size = choose_shard_size(len(samples), SHARD_SIZE) if shard_size is None else shard_size
    require_settings(shard_size=shard_size)
    group = Group(equivalence, threshold=threshold, complete_groups=complete_groups)
    group.find_needed_size(len(samples[0]["completions"]))
    columns = samples.select_columns(["prompt", "completions", *list_instruction_columns(equivalence)])
    fingerprint = {
        "threshold": threshold,
        "complete_groups": complete_groups,
        "shard_size": shard_size,
        "instructions": fingerprint_instructions(samples, equivalence),
    }
    if output_dir is not None:
        fingerprint |= {"samples": dataset_fingerprint(columns), "equivalence": equivalence.fingerprint}
    groups = map_shards(
        columns,
        lambda index, batch, advance: group.group(batch, advance),
        description="Clustering",
        shard_size=shard_size,
        output_dir=output_dir,
        fingerprint=fingerprint,
        features=Features.from_arrow_schema(pa.schema(_TYPES)),
    )
    confidences = groups.select_columns("confidence").with_format("numpy")[:]["confidence"]
    accepted = int((confidences >= threshold).sum())
    logger.info(f"{accepted} of {len(samples)} prompts reach a confidence of {threshold}.")
    kept = samples.remove_columns([name for name in groups.column_names if name in samples.column_names])
    return concatenate_datasets([kept, groups], axis=1)


class Group:
    """
    Groups the completions of each prompt by meaning, in batches of columns. [`cluster`] is built on it.

    It runs in `Dataset.map` and in Ray Data's `map_batches`. The result of a row does not depend on other rows. Each
    process loads the model when it needs it for the first time.

    Args:
        equivalence ([`Equivalence`] or `str` or `Path` or `Callable`):
            Decides which completions mean the same. A folder or Hub name is that of an NLI classifier for
            [`NLIEquivalence`]. A function without arguments returns the equivalence. An object that holds a model
            cannot be sent to other processes.
        rule (`str`, *optional*):
            Rule of [`NLIEquivalence`] for a folder or Hub name: `"strict"` (the default) or `"no_contradiction"`.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest confidence that is accepted, in [0, 1] (γ in the paper).
        complete_groups (`bool`, *optional*, defaults to `False`):
            Whether to find all groups of all prompts, as in [`cluster`].
        options:
            Further arguments of [`NLIEquivalence`] for a folder or Hub name, such as `cache`.

    Raises:
        TypeError: If `equivalence` is none of these, or there is a `rule` or an option for an object.
        ValueError: If `threshold` is outside [0, 1], or `rule` is unknown.

    Example:

    ```python
    >>> group = Group(ExactMatch(), threshold=0.5)
    >>> group({"prompt": ["2 + 2?"], "completions": [["4", "5", "4."]]})["cluster_ids"]
    [[0, 1, 0]]
    >>> grouped = samples.map(Group("my-nli"), batched=True, with_rank=True, num_proc=2)  # one process on each GPU
    ```
    """

    def __init__(
        self,
        equivalence: Equivalence | str | Path | Callable[[], Equivalence],
        rule: str | None = None,
        threshold: float = 0.5,
        *,
        complete_groups: bool = False,
        **options: Any,
    ):
        self._equivalence = hold_equivalence(equivalence, rule, options)
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` is a share of the completions and must be in [0, 1], got {threshold}.")
        self.threshold = threshold
        self.complete_groups = complete_groups

    def __call__(self, batch: Batch, rank: int | None = None) -> Batch:
        """
        Groups the completions of a batch.

        Args:
            batch (`Mapping` or `pyarrow.Table`):
                Columns `prompt` and `completions`, and the one that the equivalence names, as for [`read_columns`].
            rank (`int`, *optional*):
                Number of the worker, which selects its accelerator.

        Returns:
            `dict[str, list]` or `pyarrow.Table`: The batch with the columns that [`cluster`] adds.

        Raises:
            TypeError, ValueError: If the batch does not hold policy samples.
        """
        prepare_worker(rank)
        columns = read_columns(batch)
        require_sample_columns(columns, ["prompt", "completions"])
        return add_columns(batch, self.group(columns), _TYPES)

    def group(
        self, columns: Mapping[str, list], advance: Callable[[int], Any] = lambda count: None
    ) -> dict[str, list]:
        """
        Computes the new columns of policy samples that are already checked.

        Args:
            columns (`Mapping[str, list]`):
                Columns as plain Python values.
            advance (`Callable`, *optional*):
                Called as `advance(count)` whenever `count` more rows are done.

        Returns:
            `dict[str, list]`: `cluster_ids`, `confidence` and `confidence_upper`.
        """
        equivalence = self._equivalence.get()
        prompts = read_instructions(columns, equivalence, "batch")
        rows = list(zip(prompts, columns["completions"], strict=True))
        records = []
        for start in range(0, len(rows), _PROMPTS_AT_ONCE):
            records += self._group_together(rows[start : start + _PROMPTS_AT_ONCE], equivalence, advance)
        return {name: [record[name] for record in records] for name in _TYPES}

    def _group_together(
        self, rows: list[tuple[str, list[str]]], equivalence: Equivalence, advance: Callable[[int], Any]
    ) -> list[dict[str, Any]]:
        inputs = [_merge_duplicates(*row, equivalence) for row in rows]
        needed_sizes = [self.find_needed_size(len(completions)) for _, completions in rows]
        found = _run_searches(inputs, equivalence, needed_sizes, self.complete_groups, advance)
        return [
            _build_record(distinct, groups, len(completions))
            for distinct, groups, (_, completions) in zip(inputs, found, rows, strict=True)
        ]

    def find_needed_size(self, num_generations: int) -> int:
        """
        Returns the size of the smallest group that is accepted, in completions. Logs [`warn_of_low_threshold`] unless
        the threshold is 0, which accepts all prompts on purpose.

        Args:
            num_generations (`int`):
                Number of completions of the prompt.

        Returns:
            `int`: From 1 to `num_generations`.
        """
        if self.threshold > 0:
            warn_of_low_threshold(self.threshold, num_generations)
        return next(size for size in range(1, num_generations + 1) if size / num_generations >= self.threshold)


def hold_equivalence(
    equivalence: Any, rule: str | None = None, options: Mapping[str, Any] | None = None
) -> WorkerModel:
    """
    Holds an equivalence for a worker.

    Args:
        equivalence ([`Equivalence`] or `str` or `Path` or `Callable`):
            As for [`Group`].
        rule (`str`, *optional*):
            Rule of [`NLIEquivalence`] for a folder or Hub name.
        options (`Mapping`, *optional*):
            Further arguments of [`NLIEquivalence`] for a folder or Hub name.

    Returns:
        [`WorkerModel`]: Its value is the equivalence.

    Raises:
        TypeError: If `equivalence` is none of these, or there is a `rule` or an option for an object.
        ValueError: If `rule` is unknown.
    """
    options = {**({} if rule is None else {"rule": rule}), **(options or {})}
    if rule is not None and rule not in RULES:
        raise ValueError(f"`rule` must be one of {sorted(RULES)}, got {rule!r}.")
    if isinstance(equivalence, str | Path):
        return WorkerModel("equivalence", equivalence, functools.partial(NLIEquivalence, equivalence, **options))
    if options:
        raise TypeError(
            f"{sorted(options)} are options of an NLI classifier that is loaded by name, but `equivalence` is a "
            f"`{type(equivalence).__name__}`. Pass a folder or a name on the Hub, or leave them out."
        )
    if inspect.isroutine(equivalence) or isinstance(equivalence, functools.partial):
        return WorkerModel("equivalence", equivalence, functools.partial(_make_equivalence, equivalence))
    require_equivalence(equivalence)
    has_weights = isinstance(equivalence, NLIEquivalence | EmbeddingEquivalence)
    return WorkerModel("equivalence", equivalence, has_weights=has_weights)


def _make_equivalence(function: Callable[[], Equivalence]) -> Equivalence:
    equivalence = function()
    require_equivalence(equivalence)
    return equivalence


def find_largest_group(cluster_ids: list[int]) -> list[int]:
    """
    Returns the members of the largest group (g̃ in the paper).

    If several groups are equally large, it is the one that was opened first.

    Args:
        cluster_ids (`list[int]`):
            Group of each completion, as numbered by [`cluster`]. -1 means no group.

    Returns:
        `list[int]`: Positions of the members, in order. Empty if no completion has a group. The result has no meaning
        for a rejected prompt with incomplete groups.

    Example:

    ```python
    >>> find_largest_group([0, 1, -1, 1, 0])
    [0, 4]
    ```
    """
    sizes = {cluster_id: cluster_ids.count(cluster_id) for cluster_id in sorted(set(cluster_ids) - {-1})}
    largest = max(sizes, key=sizes.get, default=None)
    return [position for position, cluster_id in enumerate(cluster_ids) if cluster_id == largest]


def find_majority(cluster_ids: list[int], threshold: float) -> list[int]:
    """
    Returns the members of the largest group if it is a clear majority, that is, if SPG accepts the prompt.

    Args:
        cluster_ids (`list[int]`):
            Group of each completion, as for [`find_largest_group`].
        threshold (`float`):
            Smallest share of the completions that is accepted, in [0, 1] (γ in the paper).

    Returns:
        `list[int]`: Positions of the members, in order. Empty if the largest group has a smaller share, or fewer than
        two members.

    Example:

    ```python
    >>> find_majority([0, 1, -1, 1, 0], 0.4), find_majority([0, 1, -1, 1, 0], 0.5)
    ([0, 4], [])
    ```
    """
    group = find_largest_group(cluster_ids)
    return group if len(group) >= 2 and len(group) / len(cluster_ids) >= threshold else []


def restore_share(confidence: float, num_generations: int) -> float:
    """
    Restores a confidence that was rounded to 32 bits, for example by the NumPy format of `datasets`.

    Args:
        confidence (`float`):
            Share of the completions in a group.
        num_generations (`int`):
            Number n of completions.

    Returns:
        `float`: The share k / n that is rounded to `confidence`, or `confidence` itself if there is none.

    Example:

    ```python
    >>> restore_share(0.699999988079071, 10)
    0.7
    ```
    """
    share = round(confidence * num_generations) / num_generations
    return share if np.float32(share) == np.float32(confidence) else confidence


def has_groups(columns: Collection[str]) -> bool:
    """
    Checks whether samples are grouped.

    Args:
        columns (`Collection[str]`):
            Names of their columns.

    Returns:
        `bool`: Whether they have the columns `cluster_ids` and `confidence` of [`cluster`].
    """
    return {"cluster_ids", "confidence"} <= set(columns)


def require_decided_groups(samples: Dataset | Mapping[str, list], threshold: float) -> None:
    """
    Checks that samples with groups were clustered far enough for a threshold.

    Args:
        samples ([`~datasets.Dataset`] or `Mapping[str, list]`):
            Samples that [`cluster`] has grouped, or a batch of their columns.
        threshold (`float`):
            Smallest confidence that is accepted, in [0, 1].

    Raises:
        ValueError: If it is unknown whether a row reaches the threshold, or which group is the largest.
    """
    if isinstance(samples, Dataset):
        names = [name for name in ("confidence", "confidence_upper") if name in samples.column_names]
        parts = samples.select_columns(names).iter(_ROWS_PER_CHECK)
    else:
        parts = [samples]
    bounds = (zip(part["confidence"], part.get("confidence_upper", part["confidence"]), strict=True) for part in parts)
    for row, (low, high) in enumerate(chain.from_iterable(bounds)):
        if low < high and np.float32(high) >= np.float32(threshold):  # a confidence may be rounded to 32 bits
            raise ValueError(
                f"`samples` row {row} was clustered for another threshold. Its confidence is between {low} and "
                f"{high}, and its largest group is not certain at {threshold}. Call "
                f"`cluster(threshold={threshold})`, or pass `complete_groups=True` to it."
            )


def warn_of_low_threshold(threshold: float, num_generations: int) -> None:
    """
    Logs a warning if a threshold excludes no majority. It is logged once for equal arguments.

    Args:
        threshold (`float`):
            Smallest share of the completions that is accepted, in [0, 1] (γ in the paper).
        num_generations (`int`):
            Number n of completions of a prompt.
    """
    if threshold * num_generations <= 1:
        logger.warning_once(
            f"A confidence threshold of {threshold} of {num_generations} completions is at most one completion, so "
            "every prompt with two completions that agree is accepted. Sample more completions or raise it."
        )


@dataclass(frozen=True)
class _DistinctCompletions:
    """The distinct completions of one prompt: the first text of each, and the positions of all its copies."""

    prompt: str
    texts: list[str]
    positions: list[list[int]]


def _merge_duplicates(prompt: str, completions: list[str], equivalence: Equivalence) -> _DistinctCompletions:
    positions: dict[str, list[int]] = {}
    for position, completion in enumerate(completions):
        positions.setdefault(equivalence.normalize(completion), []).append(position)
    positions.pop("", None)
    texts = [completions[copies[0]] for copies in positions.values()]
    return _DistinctCompletions(prompt, texts, list(positions.values()))


def _run_searches(
    inputs: list[_DistinctCompletions],
    equivalence: Equivalence,
    needed_sizes: list[int],
    complete_groups: bool,
    count: Callable[[int], Any],
) -> list[list[PossibleGroup]]:
    """Runs the searches of all prompts together. Each round makes one call of the equivalence for all of them."""
    found: list[list[PossibleGroup]] = [[] for _ in inputs]
    searches: dict[int, tuple[Generator[list[Pair], list[bool], list[PossibleGroup]], list[Pair]]] = {}

    def advance(row, search, verdicts):
        try:
            searches[row] = search, search.send(verdicts)
        except StopIteration as end:
            searches.pop(row, None)
            found[row] = end.value
            count(1)

    for row, distinct in enumerate(inputs):
        weights = [len(copies) for copies in distinct.positions]
        advance(row, search_groups(weights, needed_sizes[row], complete_groups), None)
    while searches:
        requests = [(inputs[row], *pair) for row, (_, pairs) in searches.items() for pair in pairs]
        verdicts = iter(
            ask_equivalence(
                equivalence,
                [distinct.prompt for distinct, _, _ in requests],
                [distinct.texts[first] for distinct, first, _ in requests],
                [distinct.texts[second] for distinct, _, second in requests],
            )
        )
        for row, (search, pairs) in list(searches.items()):
            advance(row, search, list(islice(verdicts, len(pairs))))
    return found


def _build_record(inputs: _DistinctCompletions, groups: list[PossibleGroup], num_generations: int) -> dict[str, Any]:
    """Returns the new columns of one prompt. Its bounds are equal only if it is certain which group is the largest."""
    lower = max((group.lower for group in groups), default=0)
    upper = max((group.upper for group in groups), default=0)
    if lower == upper and not _is_first_certain(groups, upper):
        lower -= 1
    return {
        "cluster_ids": _build_cluster_ids(inputs, groups, num_generations),
        "confidence": lower / num_generations,
        "confidence_upper": upper / num_generations,
    }


def _is_first_certain(groups: list[PossibleGroup], size: int) -> bool:
    """Whether the first opened group that may have this size has it for certain."""
    first = next((group for group in groups if group.upper == size), None)
    return first is None or first.lower == size


def _build_cluster_ids(inputs: _DistinctCompletions, groups: list[PossibleGroup], num_generations: int) -> list[int]:
    """Returns the group of each completion, or -1 where the group or the membership is not certain."""
    cluster_ids = [-1] * num_generations
    for cluster_id, group in enumerate(group for group in groups if group.is_certain):
        for completion in [group.leader, *group.members]:
            for position in inputs.positions[completion]:
                cluster_ids[position] = cluster_id
    return cluster_ids
