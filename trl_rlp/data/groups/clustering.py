"""Groups of equal meaning among the outputs for each prompt, and the confidence that the largest one gives."""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice

from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.groups.group_search import Group, Pair, search_groups
from trl_rlp.data.validation import prompt_text, require_samples


logger = logging.get_logger(__name__)

# Prompts that are searched at the same time: enough to fill batches of one length, few enough to keep in memory.
_PROMPTS_AT_ONCE = 1024


def cluster(
    samples: Dataset, equivalence: Equivalence, *, threshold: float = 0.5, complete_groups: bool = False
) -> Dataset:
    """
    Groups the outputs for each prompt by meaning and gives the share of the largest group, the confidence.

    An output joins the first group, in the order of opening, whose first output means the same, and opens a new one if
    there is none. confidence = |g̃| / |y|, with g̃ the largest group (of equally large ones the first opened) and y all
    outputs. A prompt is accepted if its confidence reaches `threshold`. Outputs that are equal after
    `equivalence.normalize` are compared once, empty ones belong to no group, and comparing stops as soon as the
    decision and g̃ are certain; both are exactly those of the full loop over the distinct outputs.

    Args:
        samples (`datasets.Dataset`):
            Policy samples: `prompt`, `completions` and `finished`.
        equivalence ([`Equivalence`]):
            Judge of equal meaning, for example [`NLIEquivalence`]. It gets the questions of many prompts at once.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest confidence that is accepted, in [0, 1] (gamma in the paper). At 0 every prompt is accepted.
        complete_groups (`bool`, *optional*, defaults to `False`):
            Whether to finish all groups of all prompts, which costs more comparisons. Without it only the largest
            group of an accepted prompt is whole.

    Returns:
        `datasets.Dataset`: `samples` with `cluster_ids` (`list[int]`, numbered in the order of opening; -1 for an
        output that is empty or was not needed), `confidence` and `confidence_upper` (`float`, in [0, 1]). The two are
        equal for an accepted prompt and with `complete_groups`; for a rejected one they are bounds, both below
        `threshold`. Existing columns of these names are replaced.

    Raises:
        TypeError: if `samples` is not a `datasets.Dataset`.
        ValueError: if `threshold` lies outside [0, 1], or `samples` are no policy samples, see [`require_samples`].

    Relations:
        [`ExactMatch`] as the equivalence makes this majority voting.

    Reference:
        https://arxiv.org/abs/2403.19279, section on synthetic preference generation (gamma); the loop is algorithm 1
        of Kuhn et al. 2023, https://arxiv.org/abs/2302.09664.

    Example:

    ```python
    >>> row = {"prompt": "2 + 2?", "completions": ["4", "5", "4."], "finished": [True, True, True]}
    >>> grouped = cluster(Dataset.from_list([row]), ExactMatch())
    >>> grouped[0]["cluster_ids"], grouped[0]["confidence"]
    ([0, 1, 0], 0.6666666666666666)
    ```
    """
    require_samples(samples, "samples")
    num_generations = len(samples[0]["completions"])
    needed = _needed_weight(threshold, num_generations)
    columns = {"cluster_ids": [], "confidence": [], "confidence_upper": []}
    rows = zip(samples["prompt"], samples["completions"], strict=True)
    outputs = [_distinct(prompt_text(prompt), completions, equivalence) for prompt, completions in rows]
    for distinct, groups in zip(outputs, _search_all(outputs, equivalence, needed, complete_groups), strict=True):
        columns["cluster_ids"].append(_cluster_ids(distinct, groups, num_generations))
        columns["confidence"].append(max((group.lower for group in groups), default=0) / num_generations)
        columns["confidence_upper"].append(max((group.upper for group in groups), default=0) / num_generations)
    accepted = sum(confidence >= threshold for confidence in columns["confidence"])
    logger.info(f"{accepted} of {len(samples)} prompts reach a confidence of {threshold}.")
    grouped = samples.remove_columns([name for name in columns if name in samples.column_names])
    for name, values in columns.items():
        grouped = grouped.add_column(name, values)
    return grouped


def largest_group(cluster_ids: list[int]) -> list[int]:
    """
    Gives the members of the largest group, of equally large ones the first opened (g̃ in the paper).

    Args:
        cluster_ids (`list[int]`):
            Group of each output as [`cluster`] numbers them; -1 stands for none.

    Returns:
        `list[int]`: positions of its outputs, in order; empty if no output has a group. For a rejected prompt whose
        groups were left unfinished it means nothing.

    Example:

    ```python
    >>> largest_group([0, 1, -1, 1, 0])
    [0, 4]
    ```
    """
    sizes = {cluster_id: cluster_ids.count(cluster_id) for cluster_id in sorted(set(cluster_ids) - {-1})}
    largest = max(sizes, key=sizes.get, default=None)
    return [position for position, cluster_id in enumerate(cluster_ids) if cluster_id == largest]


def _needed_weight(threshold: float, num_generations: int) -> int:
    """The smallest group that is accepted, counted in outputs."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a share of the outputs and must lie in [0, 1], got {threshold}.")
    if 0 < threshold * num_generations <= 1:
        logger.warning(
            f"`threshold`={threshold} of {num_generations} outputs is at most one output, so any group will do. "
            "Raise `threshold` or sample more outputs."
        )
    return next(weight for weight in range(1, num_generations + 1) if weight / num_generations >= threshold)


@dataclass(frozen=True)
class _Outputs:
    """The distinct outputs for one prompt: the text that stands for each, and the positions that it stands for."""

    prompt: str
    texts: list[str]
    positions: list[list[int]]


def _distinct(prompt: str, completions: list[str], equivalence: Equivalence) -> _Outputs:
    positions: dict[str, list[int]] = {}
    for position, completion in enumerate(completions):
        positions.setdefault(equivalence.normalize(completion), []).append(position)
    positions.pop("", None)
    return _Outputs(prompt, [completions[places[0]] for places in positions.values()], list(positions.values()))


def _search_all(
    outputs: list[_Outputs], equivalence: Equivalence, needed: int, complete_groups: bool
) -> list[list[Group]]:
    """Runs the searches of all prompts side by side and puts their questions to the judge in one call a round."""
    found: list[list[Group]] = [[] for _ in outputs]
    searches: dict[int, tuple[Generator[list[Pair], list[bool], list[Group]], list[Pair]]] = {}
    waiting = iter(enumerate(outputs))
    with tqdm(total=len(outputs), desc="Clustering", unit="prompt") as progress:

        def advance(row, search, answers):
            try:
                searches[row] = search, search.send(answers)
            except StopIteration as end:
                searches.pop(row, None)
                found[row] = end.value
                progress.update()

        while True:
            while len(searches) < _PROMPTS_AT_ONCE and (entry := next(waiting, None)) is not None:
                row, distinct = entry
                weights = [len(places) for places in distinct.positions]
                advance(row, search_groups(weights, needed, complete_groups), None)
            if not searches:
                return found
            asked = [(outputs[row], *pair) for row, (_, pairs) in searches.items() for pair in pairs]
            answers = iter(
                equivalence.same(
                    [distinct.prompt for distinct, _, _ in asked],
                    [distinct.texts[first] for distinct, first, _ in asked],
                    [distinct.texts[second] for distinct, _, second in asked],
                )
            )
            for row, (search, pairs) in list(searches.items()):
                advance(row, search, list(islice(answers, len(pairs))))


def _cluster_ids(outputs: _Outputs, groups: list[Group], num_generations: int) -> list[int]:
    """The number of each output's group, where both are certain, else -1."""
    cluster_ids = [-1] * num_generations
    for cluster_id, group in enumerate(group for group in groups if group.is_certain):
        for item in [group.leader, *group.members]:
            for position in outputs.positions[item]:
                cluster_ids[position] = cluster_id
    return cluster_ids
