"""The data collator for synthetic preferences and views. It can draw rejected completions again in each epoch."""

import hashlib
import math
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.utils import logging
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_rlp.data.preferences.views import View, ViewSampler


logger = logging.get_logger(__name__)

RECORD = "rlp_record"
"""Column with the number of a training record. Its name must not be one that users give to their own columns."""


class EpochCallback(TrainerCallback):
    """
    Passes the current epoch to a [`SyntheticPreferenceCollator`]. It also works in data-loader workers, after a resume
    and for passes over a stream.

    Args:
        epoch (`torch.Tensor`):
            Scalar in shared memory. The collator reads it. It is -1 until a trainer has the callback.
    """

    def __init__(self, epoch: torch.Tensor):
        self.epoch = epoch
        self._next_epoch = 0

    def connect(self) -> None:
        """Notes that a trainer has the callback."""
        self.epoch.clamp_(min=0)

    def on_init_end(self, args, state, control, **kwargs):
        """
        Checks that the trainer keeps the columns that the collator draws from.

        Raises:
            ValueError: If the trainer removes them.
        """
        if args.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` is True, so the trainer removes `candidate_ids`, and "
                "`SyntheticPreferenceCollator` cannot draw again. Set it to False."
            )
        self.connect()

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts to count epochs."""
        self._next_epoch = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Stores the epoch that begins."""
        # The trainer counts epochs in fractions, and a resumed run starts in the middle of an epoch. Of a stream, the
        # trainer does not know the length, so its count falls behind.
        epoch = max(int(state.epoch), self._next_epoch)
        self._next_epoch = epoch + 1
        self.epoch.fill_(epoch)


class SyntheticPreferenceCollator:
    """
    Collates tokenized preferences as TRL does, draws y_l of synthetic pairs again in each epoch, and adds views.

    Pass it as `data_collator=` to an unmodified `trl.RewardTrainer` with `remove_unused_columns=False`. Also pass
    `callbacks=[collator.epoch_callback]`. Without the callback, every epoch uses the draws of the first one, and a
    warning says so.

    Records without `candidate_ids` are collated as by TRL's `DataCollatorForPreference`, bit for bit. Each draw is a
    function of (seed, epoch, record), with any number of data-loader workers.

    Args:
        pad_token_id (`int`):
            Id of the reward model's pad token.
        pad_to_multiple_of (`int`, *optional*):
            If set, lengths are rounded up to a multiple of this number of tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, at least 0.
        views ([`ViewSampler`], *optional*):
            Source of the views. Without it, a batch has no views. Only `RLPRewardTrainer` reads them.
        view_prompts_per_device (`int`, *optional*, defaults to `8`):
            Largest number V of prompts that add their two views to a batch, at least 2. A batch has fewer if several
            of its slots hold the same prompt.
        records_per_batch (`int`, *optional*):
            `per_device_train_batch_size`. Required with `views`, because it spreads the slots over the records.

    Records have `chosen_ids`, `rejected_ids`, and optionally:
        - `margin` (`float`): As in TRL.
        - `candidate_ids` (`list[list[int]]`): Completions to draw y_l from, instead of `rejected_ids`. May be `None`.
        - `rlp_record` (`int`): Number of the record in the training set. The draws of a record depend on it, or on
          `chosen_ids` if it is missing. Only batches of records with a number get views, so evaluation sets get none.

    Attributes:
        draws_only_numbered (`bool`): Whether records without a number keep their `rejected_ids`. `RLPRewardTrainer`
            sets it to `True`, because its evaluation sets must not change.

    Returns of a call:
        `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` of shape `(2 * batch, length)`, with the chosen
        sides first. `margin` of shape `(batch,)` if the records have one. With views also `view_input_ids` and
        `view_attention_mask` of shape `(2 * V, view length)`, with the first views of all prompts first. With views
        also `view_prompt_indices` of shape `(V,)`, the rows of the prompts in the policy samples.

    Raises:
        ValueError: If `seed` is negative, `view_prompts_per_device` is below 2, or `records_per_batch` is missing.

    Example:

    ```python
    >>> collator = SyntheticPreferenceCollator(pad_token_id=0)
    >>> batch = collator([{"chosen_ids": [1, 2], "rejected_ids": [3], "candidate_ids": [[4], [5]]}])
    >>> batch["input_ids"].tolist()
    [[1, 2], [4, 0]]
    ```
    """

    def __init__(
        self,
        pad_token_id: int,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
        views: ViewSampler | None = None,
        view_prompts_per_device: int = 8,
        records_per_batch: int | None = None,
    ):
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")
        if view_prompts_per_device < 2:
            raise ValueError(
                f"`view_prompts_per_device` must be at least 2, got {view_prompts_per_device}, because the loss "
                "compares views of different prompts."
            )
        if views is not None and (records_per_batch is None or records_per_batch < 1):
            raise ValueError(
                f"`records_per_batch` must be at least 1 with `views`, got {records_per_batch}. Pass "
                "`per_device_train_batch_size`."
            )
        self.seed = seed
        self.views = views
        self.view_prompts_per_device = view_prompts_per_device
        self.records_per_batch = records_per_batch
        self._collate = DataCollatorForPreference(pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of)
        self.draws_only_numbered = False
        # Data-loader workers are separate processes, and persistent workers live longer than one epoch.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()
        self.epoch_callback = EpochCallback(self._epoch)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self._warn_without_callback()
        batch = self._collate([self._draw_rejected(example) for example in examples])
        if self.views is not None and RECORD in examples[0]:
            batch |= self._collate_views([example[RECORD] for example in examples])
        return batch

    def _warn_without_callback(self) -> None:
        """Warns once if no trainer has the callback. Workers share the epoch, so only one of them warns."""
        if self._epoch.item() < 0:
            self.epoch_callback.connect()
            logger.warning(
                "No trainer has the `epoch_callback` of this `SyntheticPreferenceCollator`, so every epoch uses the "
                "draws of the first one. Pass `callbacks=[collator.epoch_callback]` to the trainer, and set "
                "`remove_unused_columns=False`."
            )

    def _draw_rejected(self, example: dict[str, Any]) -> dict[str, Any]:
        if self.draws_only_numbered and RECORD not in example:
            return example
        candidates = example.get("candidate_ids")
        if not candidates:
            # Both columns are those of `synthesize_preferences`. A column `candidates` alone is the user's.
            if example.get("candidates") and "candidates_finished" in example:
                raise ValueError(
                    "A record has `candidates` but no `candidate_ids` to draw from, because the trainer does not "
                    "tokenize candidates. Call `tokenize_preferences` on the dataset first."
                )
            return example
        # The fourth number keeps these draws independent of the draws of the views.
        generator = np.random.default_rng([self.seed, self._epoch.item(), _get_record_number(example), 2])
        return {**example, "rejected_ids": candidates[generator.integers(len(candidates))]}

    def _collate_views(self, records: list[int]) -> dict[str, torch.Tensor]:
        # Record i owns the slots i * c to i * c + c - 1, so the batches of an epoch share the slots in any order.
        slots_per_record = math.ceil(self.view_prompts_per_device / self.records_per_batch)
        slots_to_take = math.ceil(self.view_prompts_per_device / len(records))
        slots = [record * slots_per_record + j for j in range(slots_to_take) for record in records]
        view_by_prompt: dict[int, View] = {}
        for view in self.views.views(self._epoch.item(), slots):
            view_by_prompt.setdefault(view.prompt_index, view)
        views = list(view_by_prompt.values())[: self.view_prompts_per_device]
        padded = self._collate([{"chosen_ids": view.first, "rejected_ids": view.second} for view in views])
        return {
            "view_input_ids": padded["input_ids"],  # (2 * V, view length)
            "view_attention_mask": padded["attention_mask"],
            "view_prompt_indices": torch.tensor([view.prompt_index for view in views]),  # (V,)
        }


def _get_record_number(example: dict[str, Any]) -> int:
    if RECORD in example:
        return example[RECORD]
    content = np.array(example["chosen_ids"], dtype=np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
