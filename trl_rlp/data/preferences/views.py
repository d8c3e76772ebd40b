"""The sampler of views. Two views of a prompt are two different completions of it."""

from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.anchors.semantic_anchors import prompt_key
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.scoring import batch_scoring_ids, count_overlong, cut_prompts, warn_of_cut_prompts
from trl_rlp.data.template_options import TEMPLATE_COLUMNS, list_template_options
from trl_rlp.data.validation import require_columns, require_samples


logger = logging.get_logger(__name__)

_ROWS_PER_CALL = 100


class View(NamedTuple):
    """
    Two views of a prompt.

    Args:
        prompt_index (`int`):
            Row of the prompt in the samples. If several rows have equal prompts, it is the first of them.
        first (`list[int]`):
            Token ids of the first view.
        second (`list[int]`):
            Token ids of the second view.
    """

    prompt_index: int
    first: list[int]
    second: list[int]


class ViewSampler:
    """
    Draws two views of a prompt: two of its completions that are not empty and differ after normalization.

    The sampler has no state. The content of slot `s` in an epoch is a function of (seed, epoch, s). Slots 0 to N - 1
    hold the N rows in a random order, slots N to 2N - 1 hold them in another order, and so on. The two completions
    are drawn again for each slot, uniformly from all pairs of completions with different texts, in random order.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions` and `finished`. With `same_group` also `cluster_ids`. The columns
            `tools` and `chat_template_kwargs` are optional arguments of the chat template.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model. All completions are tokenized once, with [`scoring_ids`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, at least 0.
        same_group (`bool`, *optional*, defaults to `False`):
            Whether both views come from one group of completions with the same meaning. The groups should be complete
            (`complete_groups=True`). Completions with id -1 belong to no group.
        max_length (`int`, *optional*):
            Longest view, in tokens. A longer view loses the beginning of its prompt.

    Attributes:
        skipped (`int`): Number of prompts that are skipped because no two of their completions can be views.

    Raises:
        ValueError: If `samples` are not policy samples, or fewer than two prompts have two views.
    """

    def __init__(
        self,
        samples: Dataset,
        processing_class: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        same_group: bool = False,
        max_length: int | None = None,
    ):
        samples = require_samples(samples, "samples")
        if same_group:
            require_columns(samples, ["cluster_ids"], "samples")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")
        self.seed = seed
        self._texts, self._groups = _number_texts_and_groups(samples, same_group)  # (rows, n) each
        incomplete = int(((self._texts >= 0) & (self._groups < 0)).any(axis=1).sum())
        if incomplete:
            logger.warning(
                f"{incomplete} of {len(samples)} prompts have completions without a group. These completions are not "
                "used as views. Cluster with `complete_groups=True`."
            )
        has_views = [bool(len(_find_view_pairs(*row))) for row in zip(self._texts, self._groups, strict=True)]
        self._rows = np.flatnonzero(has_views)  # (prompts with views,)
        self.skipped = len(samples) - len(self)
        where = " in one group" if same_group else ""
        if self.skipped:
            logger.warning(
                f"{self.skipped} of {len(samples)} prompts do not have two different non-empty completions{where}. "
                "They are skipped."
            )
        self._prompts = _number_prompts(samples)  # (rows,)
        different = len(set(self._prompts[self._rows].tolist()))
        if different < 2:
            raise ValueError(
                f"{different} of {len(samples)} prompts have two different non-empty completions{where}, but the loss "
                "compares at least 2 prompts. Sample at a higher temperature or pass more prompts."
            )
        self._ids, self._starts = _tokenize(samples, processing_class, max_length)

    def __len__(self) -> int:
        """Returns the number of rows that have two views."""
        return len(self._rows)

    def views(self, epoch: int, slots: list[int]) -> list[View]:
        """
        Draws the views of some slots.

        Args:
            epoch (`int`):
                Epoch of the training run, at least 0.
            slots (`list[int]`):
                Slots, at least 0.

        Returns:
            `list[View]`: One per slot. Two slots of one round hold different rows. Rows may have equal prompts.
        """
        return [self._draw_view(epoch, slot) for slot in slots]

    def _draw_view(self, epoch: int, slot: int) -> View:
        turn, place = divmod(slot, len(self))
        row = int(self._rows[_draw_permutation(self.seed, epoch, turn, len(self))[place]])
        pairs = _find_view_pairs(self._texts[row], self._groups[row])  # (pairs, 2)
        generator = np.random.default_rng([self.seed, epoch, slot])
        first, second = generator.permutation(pairs[generator.integers(len(pairs))])
        return View(int(self._prompts[row]), self._get_token_ids(row, first), self._get_token_ids(row, second))

    def _get_token_ids(self, row: int, index: int) -> list[int]:
        completion = row * self._texts.shape[1] + index
        return self._ids[self._starts[completion] : self._starts[completion + 1]].tolist()


@lru_cache(maxsize=8)
def _draw_permutation(seed: int, epoch: int, turn: int, size: int) -> np.ndarray:
    # The fourth number keeps these draws independent of the draws of the slots.
    return np.random.default_rng([seed, epoch, turn, 1]).permutation(size)


def _number_prompts(samples: Dataset) -> np.ndarray:
    """Numbers prompts by the first row with an equal one. Views of equal prompts must not be a product pair."""
    first_rows: dict[str, int] = {}
    keys = map(prompt_key, samples["prompt"][:])
    return np.array([first_rows.setdefault(key, row) for row, key in enumerate(keys)])


def _number_texts_and_groups(samples: Dataset, same_group: bool) -> tuple[np.ndarray, np.ndarray]:
    """
    Numbers the texts and the groups of all completions.

    Returns:
        Two arrays of shape `(rows, n)`. In the first, equal numbers mean equal texts, and -1 means an empty text. In
        the second, equal numbers mean one group, and -1 means no group.
    """
    texts, groups = [], []
    for row in samples:
        normalized = [normalize_text(completion) for completion in row["completions"]]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(normalized))}
        texts.append([numbers[text] if text else -1 for text in normalized])
        groups.append(row["cluster_ids"] if same_group else [0] * len(normalized))
    return np.array(texts), np.array(groups)


def _find_view_pairs(texts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the pairs of completions that can be the two views, as indices of shape `(pairs, 2)`."""
    is_usable = (texts >= 0) & (groups >= 0)  # (n,)
    is_pair = (texts[:, None] != texts) & (groups[:, None] == groups) & is_usable[:, None] & is_usable  # (n, n)
    return np.argwhere(np.triu(is_pair))


def _tokenize(
    samples: Dataset, processing_class: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Tokenizes all completions with their prompts.

    Returns:
        The token ids of all completions in one array, and the position where each completion starts. Arrays are
        compact, and data-loader workers share them.
    """
    ids, starts = array("i"), array("q", [0])
    overlong = 0
    for rows in _tokenize_in_batches(samples, processing_class):
        overlong += count_overlong(rows, max_length)
        for row in cut_prompts(rows, processing_class, max_length):
            ids.extend(row)
            starts.append(len(ids))
    warn_of_cut_prompts(overlong, len(starts) - 1, max_length)
    return np.frombuffer(ids, dtype=np.int32), np.frombuffer(starts, dtype=np.int64)


def _tokenize_in_batches(samples: Dataset, processing_class: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    columns = ["prompt", "completions", "finished", *(name for name in TEMPLATE_COLUMNS if name in samples.features)]
    for batch in samples.select_columns(columns).iter(_ROWS_PER_CALL):
        options = list_template_options(batch) or [{}] * len(batch["prompt"])
        rows = zip(batch["prompt"], batch["completions"], batch["finished"], options, strict=True)
        repeated = [
            (prompt, text, flag, kwargs)
            for prompt, texts, finished, kwargs in rows
            for text, flag in zip(texts, finished, strict=True)
        ]
        prompts, texts, finished, options = map(list, zip(*repeated, strict=True))
        yield batch_scoring_ids(processing_class, prompts, texts, finished, template_options=options)
