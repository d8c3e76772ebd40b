"""Two outputs of one instruction as two views of it."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.scoring import batch_scoring_ids, cut_prompts, warn_of_cut_prompts
from trl_rlp.data.validation import require_columns, require_samples


logger = logging.get_logger(__name__)

_ROWS_PER_CALL = 100


class View(NamedTuple):
    """Two views of an instruction: its row among the samples, and the token ids of both."""

    instruction: int
    first: list[int]
    second: list[int]


class ViewSampler:
    """
    Draws two views of an instruction: two of its outputs, not empty and of different text after normalization.

    It has no state: what slot `s` of an epoch holds is a function of (seed, epoch, s). Slots 0 to N - 1 are the N
    instructions in a random order, slots N to 2N - 1 the same in another order, and so on; the two outputs are drawn
    for each slot, uniformly from all pairs of outputs whose texts differ, in random order.

    Args:
        samples (`datasets.Dataset`):
            Policy samples: `prompt`, `completions`, `finished`; with `same_group` also `cluster_ids`.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer of the reward model. All outputs are tokenized once, as [`scoring_ids`].
        seed (`int`, *optional*, defaults to `0`):
            Decides every draw, at least 0.
        same_group (`bool`, *optional*, defaults to `False`):
            Whether both views come from one group of equal meaning. The groups should be complete
            (`complete_groups=True`); outputs with id -1 are in none.
        max_length (`int`, *optional*):
            Longest view, in tokens; what is longer loses the beginning of its prompt.

    Attributes:
        skipped (`int`): instructions that are left out because no two of their outputs can be views.

    Raises:
        ValueError: if the samples are not policy samples, or fewer than two instructions have two views.
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
        require_samples(samples, "samples")
        if same_group:
            require_columns(samples, ["cluster_ids"], "samples")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")
        self.seed = seed
        self._texts, self._groups = _text_and_group_numbers(samples, same_group)  # (rows, n) each
        incomplete = int(((self._texts >= 0) & (self._groups < 0)).any(axis=1).sum())
        if incomplete:
            logger.warning(
                f"{incomplete} of {len(samples)} instructions have outputs that were not grouped, which are no views. "
                "Cluster with `complete_groups=True`."
            )
        usable = [bool(len(_view_pairs(*row))) for row in zip(self._texts, self._groups, strict=True)]
        self._instructions = np.flatnonzero(usable)  # (instructions,)
        self.skipped = len(samples) - len(self)
        if self.skipped:
            logger.warning(
                f"{self.skipped} of {len(samples)} instructions have no two different non-empty outputs"
                f"{' in one group' if same_group else ''} and bring no views."
            )
        if len(self) < 2:
            raise ValueError(
                f"{len(self)} of {len(samples)} instructions have two different non-empty outputs"
                f"{' in one group' if same_group else ''}; the loss compares at least 2. Sample at a higher "
                "temperature or pass more prompts."
            )
        self._ids, self._starts = _flat_ids(samples, processing_class, max_length)

    def __len__(self) -> int:
        """Number of instructions that have two views."""
        return len(self._instructions)

    def views(self, epoch: int, slots: list[int]) -> list[View]:
        """
        Gives the views of some slots.

        Args:
            epoch (`int`):
                Epoch of the training run, at least 0.
            slots (`list[int]`):
                Slots, at least 0.

        Returns:
            `list[View]`: one a slot. Two slots of one round hold different instructions.
        """
        return [self._view(epoch, slot) for slot in slots]

    def _view(self, epoch: int, slot: int) -> View:
        turn, place = divmod(slot, len(self))
        row = int(self._instructions[_permutation(self.seed, epoch, turn, len(self))[place]])
        pairs = _view_pairs(self._texts[row], self._groups[row])  # (pairs, 2)
        generator = np.random.default_rng([self.seed, epoch, slot])
        first, second = generator.permutation(pairs[generator.integers(len(pairs))])
        return View(row, self._output(row, first), self._output(row, second))

    def _output(self, row: int, place: int) -> list[int]:
        output = row * self._texts.shape[1] + place
        return self._ids[self._starts[output] : self._starts[output + 1]].tolist()


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, turn: int, size: int) -> np.ndarray:
    # The fourth number keeps this stream apart from the one of the slots.
    return np.random.default_rng([seed, epoch, turn, 1]).permutation(size)


def _text_and_group_numbers(samples: Dataset, same_group: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both of shape `(rows, n)`: outputs with equal numbers have equal text, or are in one group; -1 is none."""
    texts, groups = [], []
    for row in samples:
        normalized = [normalize_text(completion) for completion in row["completions"]]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(normalized))}
        texts.append([numbers[text] if text else -1 for text in normalized])
        groups.append(row["cluster_ids"] if same_group else [0] * len(normalized))
    return np.array(texts), np.array(groups)


def _view_pairs(texts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Pairs of outputs that can be the two views, by place: `np.ndarray` of shape `(pairs, 2)`."""
    is_some = (texts >= 0) & (groups >= 0)  # (n,)
    fits = (texts[:, None] != texts) & (groups[:, None] == groups) & is_some[:, None] & is_some  # (n, n)
    return np.argwhere(np.triu(fits))


def _flat_ids(
    samples: Dataset, processing_class: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all outputs one after the other, and where each begins: compact, and shared by loader workers."""
    chunks, lengths, overlong = [], [0], 0
    for batch in samples.select_columns(["prompt", "completions", "finished"]).iter(_ROWS_PER_CALL):
        prompts = [prompt for prompt, texts in zip(batch["prompt"], batch["completions"], strict=True) for _ in texts]
        rows = batch_scoring_ids(processing_class, prompts, sum(batch["completions"], []), sum(batch["finished"], []))
        if max_length is not None:
            rows, cut = cut_prompts(rows, processing_class, max_length)
            overlong += cut
        chunks += [np.array(row, dtype=np.int32) for row in rows]
        lengths += [len(row) for row in rows]
    if max_length is not None:
        warn_of_cut_prompts(overlong, len(lengths) - 1, max_length)
    return np.concatenate(chunks), np.cumsum(lengths)
