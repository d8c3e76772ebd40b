"""The collator of preference pairs, some of which are drawn anew each epoch, and of views."""

import hashlib
import math
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_rlp.data.preferences.views import View, ViewSampler


class EpochCallback(TrainerCallback):
    """
    Tells a [`SyntheticPreferenceCollator`] which epoch begins, also in the data-loader workers and after a resume.

    Args:
        epoch (`torch.Tensor`):
            Scalar in shared memory that the collator reads.
    """

    def __init__(self, epoch: torch.Tensor):
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        # The trainer counts epochs in fractions; a resumed one begins in the middle.
        self.epoch.fill_(int(state.epoch))


class SyntheticPreferenceCollator:
    """
    Collates tokenized preferences as TRL does, draws y_l of synthetic pairs anew each epoch, and brings views.

    It is a `data_collator=` for an unmodified `trl.RewardTrainer` with `remove_unused_columns=False`; pass
    `callbacks=[collator.epoch_callback]` too, or every epoch draws as the first. Records without `candidate_ids` are
    collated as by TRL's `DataCollatorForPreference`, bit for bit. What is drawn is a function of (seed, epoch,
    record), in any number of data-loader workers.

    Args:
        pad_token_id (`int`):
            Padding token of the reward model.
        pad_to_multiple_of (`int`, *optional*):
            If set, lengths are rounded up to a multiple of it, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Decides every draw, at least 0.
        views ([`ViewSampler`], *optional*):
            Where views come from. Without it the batch has none. Only `RLPRewardTrainer` reads them.
        view_prompts_per_device (`int`, *optional*, defaults to `8`):
            Instructions V whose views a batch brings at most, at least 2. Fewer where slots of one batch meet the same
            instruction.
        records_per_batch (`int`, *optional*):
            `per_device_train_batch_size`. Needed with `views`: it spreads the slots over the records.

    Records have `chosen_ids`, `rejected_ids`, and optionally:
        - `margin` (`float`), as in TRL;
        - `candidate_ids` (`list[list[int]]`): outputs to draw y_l from, instead of `rejected_ids`; may be None;
        - `record` (`int`): number of the record in the training set. It names the record in draws, which otherwise go
          by `chosen_ids`, and views come with records that have one, so that evaluation sets bring none.

    Returns of a call:
        `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` of shape `(2 * batch, length)`, chosen first, and
        `margin` of shape `(batch,)` if the records have one; with views `view_input_ids` and `view_attention_mask` of
        shape `(2 * V, view length)`, the first view of all instructions first, and `view_instruction_ids` of shape
        `(V,)`, rows of the policy samples.

    Raises:
        ValueError: if `seed` is negative, `view_prompts_per_device` below 2, or `records_per_batch` missing.

    Example:

    ```python
    >>> collator = SyntheticPreferenceCollator(pad_token_id=0)
    >>> batch = collator([{"chosen_ids": [1, 2], "rejected_ids": [3], "candidate_ids": [[4], [5]]}])
    >>> batch["input_ids"].tolist()
    [[1, 2], [5, 0]]
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
                f"`view_prompts_per_device` must be at least 2, got {view_prompts_per_device}: the loss compares "
                "views of different instructions."
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
        # Workers are processes of their own, and persistent ones outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.epoch_callback = EpochCallback(self._epoch)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self._collate([self._with_drawn_rejected(example) for example in examples])
        if self.views is not None and "record" in examples[0]:
            batch |= self._collate_views([example["record"] for example in examples])
        return batch

    def _with_drawn_rejected(self, example: dict[str, Any]) -> dict[str, Any]:
        candidates = example.get("candidate_ids")
        if not candidates:
            if example.get("candidates"):
                raise ValueError(
                    "A record has `candidates` for its rejected side, but no `candidate_ids` to draw from, since the "
                    "trainer does not tokenize them. Call `tokenize_preferences` on the data set first."
                )
            return example
        # The fourth number keeps this stream apart from those of the views.
        generator = np.random.default_rng([self.seed, self._epoch.item(), _record_number(example), 2])
        return {**example, "rejected_ids": candidates[generator.integers(len(candidates))]}

    def _collate_views(self, records: list[int]) -> dict[str, torch.Tensor]:
        # Record i brings slots i * c to i * c + c - 1, so an epoch's batches share the slots out in any order.
        slots_of_record = math.ceil(self.view_prompts_per_device / self.records_per_batch)
        taken = math.ceil(self.view_prompts_per_device / len(records))
        slots = [record * slots_of_record + j for j in range(taken) for record in records]
        drawn = self.views.views(self._epoch.item(), slots)
        by_instruction: dict[int, View] = {}
        for view in drawn:
            by_instruction.setdefault(view.instruction, view)
        views = list(by_instruction.values())[: self.view_prompts_per_device]
        padded = self._collate([{"chosen_ids": view.first, "rejected_ids": view.second} for view in views])
        return {
            "view_input_ids": padded["input_ids"],  # (2 * V, view length)
            "view_attention_mask": padded["attention_mask"],
            "view_instruction_ids": torch.tensor([view.instruction for view in views]),  # (V,)
        }


def _record_number(example: dict[str, Any]) -> int:
    if "record" in example:
        return example["record"]
    content = np.array(example["chosen_ids"], dtype=np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
