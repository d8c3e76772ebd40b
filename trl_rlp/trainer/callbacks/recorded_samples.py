"""Policy samples from recorded rollouts, in which prompts have different numbers of completions."""

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset

from trl_rlp.data.anchors.semantic_anchors import prompt_key
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.preferences.pairing import NoPairsError


def select_equal_counts(windows: Sequence[Dataset], columns: Sequence[str] = ()) -> Dataset:
    """
    Makes policy samples with the same number n of completions for every prompt.

    The completions of a prompt from all windows are joined. n is the number, at least 2, that keeps the most
    completions. A prompt with fewer is left out, and one with more keeps its last n.

    Args:
        windows (`Sequence[datasets.Dataset]`):
            Results of [`RolloutBuffer.rows`], in the order of time.
        columns (`Sequence[str]`, *optional*):
            Further columns to keep.

    Returns:
        `datasets.Dataset`: The columns `prompt`, `completions`, `finished` and `columns`.

    Raises:
        NoPairsError: If no prompt has two completions.
    """
    rows: dict[str, dict] = {}
    for row in (row for window in windows for row in window):
        kept = {name: row[name] for name in ("prompt", *columns) if name in row}
        joined = rows.setdefault(prompt_key(row["prompt"]), {**kept, "completions": [], "finished": []})
        for name in ("completions", "finished"):
            joined[name] += row[name]
    size = choose_count([len(row["completions"]) for row in rows.values()])
    if size is None:
        raise NoPairsError("No prompt has two recorded completions.")
    lists = ("completions", "finished")
    kept = [row for row in rows.values() if len(row["completions"]) >= size]
    return Dataset.from_list([{**row, **{name: row[name][-size:] for name in lists}} for row in kept])


def choose_count(counts: Sequence[int]) -> int | None:
    """
    Chooses the number of completions for every prompt that keeps the most completions.

    Args:
        counts (`Sequence[int]`):
            Number of completions of each prompt.

    Returns:
        `int` or `None`: At least 2. The larger one of two that keep equally many. `None` if all prompts have fewer.

    Example:

    ```python
    >>> choose_count([2, 8, 8, 16])
    8
    ```
    """
    sizes = Counter(count for count in counts if count >= 2)
    kept = {size: size * sum(number for other, number in sizes.items() if other >= size) for size in sizes}
    return max(kept, key=lambda size: (kept[size], size), default=None)


def have_views(samples: Dataset, same_group: bool) -> bool:
    """
    Checks whether [`ViewSampler`] finds two views of at least two prompts.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples.
        same_group (`bool`):
            Whether both views come from one group of `cluster_ids`.

    Returns:
        `bool`: Whether two prompts have two different completions that are not empty, in one group if `same_group`.
    """
    return sum(_has_views(row, same_group) for row in samples) >= 2


def _has_views(row: dict, same_group: bool) -> bool:
    groups = row["cluster_ids"] if same_group else [0] * len(row["completions"])
    texts = {(group, normalize_text(text)) for group, text in zip(groups, row["completions"], strict=True)}
    sizes = Counter(group for group, text in texts if text and group >= 0)
    return max(sizes.values(), default=0) >= 2
