"""Clustering of completions: groups with the same meaning, and the confidence of the largest group."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from trl_rlp.data.groups.equivalence import Equivalence, require_equivalence
from trl_rlp.data.groups.group_search import Group, Pair, search_groups
from trl_rlp.data.groups.instruction import read_instructions
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.validation import require_samples
from trl_rlp.storage.fingerprints import value_fingerprint
from trl_rlp.storage.shards import Record, cut_shards, work_in_shards


logger = logging.get_logger(__name__)

# Number of prompts that are searched at the same time. It is large enough to fill batches of similar lengths, and
# small enough to keep in memory.
_PROMPTS_AT_ONCE = 1024


def cluster(
    samples: Dataset,
    equivalence: Equivalence,
    *,
    threshold: float = 0.5,
    complete_groups: bool = False,
    output_dir: str | Path | None = None,
    shard_size: int = 256,
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
            Folder for finished shards. An interrupted call resumes from it, and several processes share the work.
            Every process must then call the function.
        shard_size (`int`, *optional*, defaults to `256`):
            Number of prompts per shard.

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
        With [`ExactMatch`] as the equivalence, this is majority voting.

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
    require_settings(shard_size=shard_size)
    num_generations = len(samples[0]["completions"])
    needed_weight = _compute_needed_weight(threshold, num_generations)
    texts = list(zip(read_instructions(samples, equivalence), samples["completions"][:], strict=True))

    def group_shard(index: int, rows: list[int], advance: Callable[[int], Any]) -> list[Record]:
        inputs = [_merge_duplicates(*texts[row], equivalence) for row in rows]
        found = _run_searches(inputs, equivalence, needed_weight, complete_groups, advance)
        return [_build_record(*groups, num_generations) for groups in zip(inputs, found, strict=True)]

    rows = list(range(len(samples)))
    settings = {"threshold": threshold, "complete_groups": complete_groups, "shard_size": shard_size}
    if output_dir is None:
        with tqdm(total=len(rows), desc="Clustering", unit="prompt") as progress:
            records = group_shard(0, rows, progress.update)
    else:
        records = work_in_shards(
            cut_shards(rows, shard_size),
            group_shard,
            description="Clustering",
            output_dir=output_dir,
            fingerprint={"samples": value_fingerprint(texts), "equivalence": equivalence.fingerprint, **settings},
        )
    columns = {name: [record[name] for record in records] for name in records[0]}
    accepted = sum(confidence >= threshold for confidence in columns["confidence"])
    logger.info(f"{accepted} of {len(samples)} prompts reach a confidence of {threshold}.")
    grouped = samples.remove_columns([name for name in columns if name in samples.column_names])
    for name, values in columns.items():
        grouped = grouped.add_column(name, values)
    return grouped


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


def _compute_needed_weight(threshold: float, num_generations: int) -> int:
    """Returns the size of the smallest group that is accepted, in completions."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a share of the completions and must be in [0, 1], got {threshold}.")
    if 0 < threshold * num_generations <= 1:
        logger.warning(
            f"`threshold`={threshold} of {num_generations} completions is at most one completion, so a group of any "
            "size is accepted. Raise `threshold` or sample more completions."
        )
    return next(weight for weight in range(1, num_generations + 1) if weight / num_generations >= threshold)


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
    needed_weight: int,
    complete_groups: bool,
    count: Callable[[int], Any],
) -> list[list[Group]]:
    """Runs the searches of all prompts together. Each round makes one call of the equivalence for all of them."""
    found: list[list[Group]] = [[] for _ in inputs]
    searches: dict[int, tuple[Generator[list[Pair], list[bool], list[Group]], list[Pair]]] = {}
    waiting = iter(enumerate(inputs))

    def advance(row, search, verdicts):
        try:
            searches[row] = search, search.send(verdicts)
        except StopIteration as end:
            searches.pop(row, None)
            found[row] = end.value
            count(1)

    while True:
        while len(searches) < _PROMPTS_AT_ONCE and (entry := next(waiting, None)) is not None:
            row, distinct = entry
            weights = [len(copies) for copies in distinct.positions]
            advance(row, search_groups(weights, needed_weight, complete_groups), None)
        if not searches:
            return found
        requests = [(inputs[row], *pair) for row, (_, pairs) in searches.items() for pair in pairs]
        verdicts = iter(
            equivalence.are_equivalent(
                [distinct.prompt for distinct, _, _ in requests],
                [distinct.texts[first] for distinct, first, _ in requests],
                [distinct.texts[second] for distinct, _, second in requests],
            )
        )
        for row, (search, pairs) in list(searches.items()):
            advance(row, search, list(islice(verdicts, len(pairs))))


def _build_record(inputs: _DistinctCompletions, groups: list[Group], num_generations: int) -> Record:
    """Returns the new columns of one prompt."""
    return {
        "cluster_ids": _build_cluster_ids(inputs, groups, num_generations),
        "confidence": max((group.lower for group in groups), default=0) / num_generations,
        "confidence_upper": max((group.upper for group in groups), default=0) / num_generations,
    }


def _build_cluster_ids(inputs: _DistinctCompletions, groups: list[Group], num_generations: int) -> list[int]:
    """Returns the group of each completion, or -1 where the group or the membership is not certain."""
    cluster_ids = [-1] * num_generations
    for cluster_id, group in enumerate(group for group in groups if group.is_certain):
        for completion in [group.leader, *group.members]:
            for position in inputs.positions[completion]:
                cluster_ids[position] = cluster_id
    return cluster_ids
