"""The prompts of a policy: their lengths in tokens, and the token ids of a shard at a time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_rlp.data.template_options import TEMPLATE_COLUMNS, list_template_options
from trl_rlp.data.turns import prompt_token_ids


_ROWS_AT_ONCE = 1000


class PolicyPrompts:
    """
    Prompts that a policy reads as token ids.

    Each prompt is tokenized twice: here for its length, and when its shard is sampled. The token ids of all prompts
    would need too much memory.

    Args:
        prompts ([`~datasets.Dataset`]):
            Checked prompts, with the columns of [`add_template_options`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        max_new_tokens (`int`):
            Maximum length of a completion, in tokens.
        context (`int`, *optional*):
            The policy's context, in tokens. `None` if it has no limit.

    Raises:
        ValueError: If a prompt has no tokens, or leaves no room for `max_new_tokens`.
    """

    def __init__(
        self, prompts: Dataset, processing_class: PreTrainedTokenizerBase, max_new_tokens: int, context: int | None
    ):
        self._processing_class = processing_class
        columns = [name for name in ("prompt", *TEMPLATE_COLUMNS) if name in prompts.column_names]
        self.rows = prompts.select_columns(columns).add_column("row", np.arange(len(prompts)))
        self.lengths = np.array(
            [len(ids) for batch in self.rows.iter(_ROWS_AT_ONCE) for ids in self.tokenize(batch)], dtype=np.int64
        )
        self._require_room(max_new_tokens, context)

    def tokenize(self, batch: Mapping[str, list]) -> list[list[int]]:
        """
        Tokenizes some of the rows.

        Args:
            batch (`Mapping[str, list]`):
                Columns of `rows`.

        Returns:
            `list[list[int]]`: Token ids of each prompt.
        """
        options = list_template_options(batch) or [{}] * len(batch["prompt"])
        return [
            prompt_token_ids(prompt, self._processing_class, **kwargs)
            for prompt, kwargs in zip(batch["prompt"], options, strict=True)
        ]

    def cut_shards(self, shard_size: int) -> list[list[int]]:
        """
        Splits the rows into shards of prompts of similar length, the longest first.

        Args:
            shard_size (`int`):
                Number of rows in a shard.

        Returns:
            `list[list[int]]`: Row numbers of each shard.
        """
        order = np.argsort(-self.lengths, kind="stable").tolist()
        return [order[start : start + shard_size] for start in range(0, len(order), shard_size)]

    def _require_room(self, max_new_tokens: int, context: int | None) -> None:
        empty = np.flatnonzero(self.lengths == 0)
        if len(empty):
            raise ValueError(f"`prompts` row {empty[0]} has no tokens. Drop it with `Dataset.filter`.")
        too_long = [] if context is None else np.flatnonzero(self.lengths + max_new_tokens > context)
        if len(too_long):
            raise ValueError(
                f"`prompts` row {too_long[0]} has {self.lengths[too_long[0]]} tokens. With `max_new_tokens`="
                f"{max_new_tokens} this is more than the model's context of {context}. Lower `max_new_tokens`, or "
                "shorten or drop the prompt."
            )


def add_template_options(prompts: Dataset, chat_template_kwargs: dict[str, Any] | None) -> Dataset:
    """
    Adds arguments of the chat template to each row. The arguments of a row take precedence.

    Args:
        prompts ([`~datasets.Dataset`]):
            Checked prompts.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template for all prompts.

    Returns:
        `datasets.Dataset`: The prompts. Messages have a column `chat_template_kwargs` if there are such arguments.
    """
    if not chat_template_kwargs or isinstance(prompts[0]["prompt"], str):
        return prompts
    name = "chat_template_kwargs"
    if name not in prompts.column_names:
        return prompts.add_column(name, [chat_template_kwargs] * len(prompts))
    # A dataset fills keys that only other rows have with `None`.
    own = [{key: value for key, value in (row or {}).items() if value is not None} for row in prompts[name]]
    rows = [{**chat_template_kwargs, **row} for row in own]
    return prompts.remove_columns(name).add_column(name, rows)
