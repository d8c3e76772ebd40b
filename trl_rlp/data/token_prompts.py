"""Prompts that are already token ids, as in datasets for TRL 1.12's PPO trainer."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.special_tokens import tokenize_texts
from trl_rlp.data.validation import remove_format


logger = logging.get_logger(__name__)

PASSED_NAMES = ("prompts", "completions")
"""Arguments of reward functions that a trainer fills itself, so they cannot be columns of the prompts."""


class TokenPrompt(str):
    """
    A prompt with fixed token ids. The policy reads the ids unchanged. As a string, it is the decoded text.

    Args:
        text (`str`):
            The decoded ids, see [`decode_ids`].
        ids (`Sequence[int]`):
            Token ids of the policy's tokenizer.
    """

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int] = ()):
        # copy and pickle call this without `ids` and restore the attribute afterwards.
        self = super().__new__(cls, text)
        self.ids = list(ids)
        return self


def add_prompts(rows: list[dict], processing_class: PreTrainedTokenizerBase, vocabulary_size: int) -> list[dict]:
    """
    Adds a `prompt` to rows that only have `input_ids`, and drops columns named `prompts` and `completions`.

    Args:
        rows (`list[dict]`):
            Rows of a dataset, each with `prompt` (text or messages) or `input_ids`. Ids with 0 in an `attention_mask`
            are dropped. Messages may be in an array, as with `set_format("numpy")`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer, with the pad token that the rows were padded with.
        vocabulary_size (`int`):
            Number of embedding rows of the policy. A pad token beyond it is dropped. Some scripts add such a token
            without resizing the embedding.

    Returns:
        `list[dict]`: The same rows. A [`TokenPrompt`] replaces `input_ids` and `attention_mask`.
    """
    rows = [{name: value for name, value in row.items() if name not in PASSED_NAMES} for row in rows]
    prompt_ids = [
        drop_foreign_padding(_select_visible_ids(row), processing_class.pad_token_id, vocabulary_size)
        for row in rows
        if "prompt" not in row
    ]
    decoded = map(TokenPrompt, decode_ids(prompt_ids, processing_class), prompt_ids)
    return [
        {**row, "prompt": _list_messages(row["prompt"])} if "prompt" in row else _replace_ids(row, next(decoded))
        for row in rows
    ]


def _list_messages(prompt: Any) -> Any:
    return prompt.tolist() if isinstance(prompt, np.ndarray) else prompt


def _replace_ids(row: dict, prompt: TokenPrompt) -> dict:
    other_columns = {name: value for name, value in row.items() if name not in ("input_ids", "attention_mask")}
    return {**other_columns, "prompt": prompt}


def decode_ids(rows: Sequence[Sequence[int]], processing_class: PreTrainedTokenizerBase) -> list[str]:
    """
    Decodes prompts to texts that the tokenizer encodes to the same ids, where there are such texts.

    Plain text is decoded without special tokens. A prompt with the tokens of a chat template keeps them. Pad tokens at
    both ends are dropped. A warning says if ids cannot be decoded in this way, for example those of half a character.
    Their text has no special tokens.

    Args:
        rows (`Sequence[Sequence[int]]`):
            Token ids of each prompt.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.

    Returns:
        `list[str]`: One text per prompt.
    """
    if not rows:
        return []
    padding = processing_class.pad_token_id
    rows = [_strip(_strip(ids, padding)[::-1], padding)[::-1] for ids in rows]
    texts = processing_class.batch_decode(rows, skip_special_tokens=True)
    encoded = tokenize_texts(processing_class, texts)
    for position in [position for position, ids in enumerate(rows) if encoded[position] != ids]:
        text = processing_class.decode(rows[position], skip_special_tokens=False)
        if tokenize_texts(processing_class, [text]) == [rows[position]]:
            texts[position] = text
        else:
            logger.warning_once(
                "Some prompts in `input_ids` have other tokens when they are decoded and tokenized again. Whatever "
                "reads text, for example sampling and reward models with another tokenizer, does not see the "
                "policy's prompts. Pass text or messages in a column `prompt` instead."
            )
    return texts


def _strip(ids: Sequence[int], padding: int | None) -> list[int]:
    return list(itertools.dropwhile(lambda token: token == padding, ids))


def _select_visible_ids(row: dict) -> list[int]:
    """Returns the token ids with 1 in the row's attention mask. Datasets may be padded already."""
    mask = row.get("attention_mask")
    if mask is None:
        return row["input_ids"]
    return [token for token, is_visible in zip(row["input_ids"], mask, strict=True) if is_visible]


def _select_id_columns(dataset: Dataset) -> Dataset:
    dataset = remove_format(dataset)
    return dataset.select_columns([name for name in ("input_ids", "attention_mask") if name in dataset.column_names])


def drop_foreign_padding(ids: Sequence[int], pad_token_id: int | None, vocabulary_size: int) -> list[int]:
    """
    Removes pad tokens that are outside the embedding.

    Args:
        ids (`Sequence[int]`):
            Token ids.
        pad_token_id (`int`, *optional*):
            The tokenizer's pad token.
        vocabulary_size (`int`):
            Number of embedding rows.

    Returns:
        `list[int]`: All other ids, unchanged.
    """
    is_foreign = pad_token_id is not None and pad_token_id >= vocabulary_size
    return [int(token) for token in ids if not (is_foreign and token == pad_token_id)]


def require_token_ids(
    dataset: Dataset, name: str, pad_token_id: int | None, vocabulary_size: int, longest: int | None
) -> None:
    """
    Checks that the policy can read the `input_ids` of a dataset.

    Args:
        dataset ([`~datasets.Dataset`]):
            Dataset with a column `input_ids` and optionally `attention_mask`.
        name (`str`):
            Name of the argument, for the error message.
        pad_token_id (`int`, *optional*):
            The tokenizer's pad token, which may be outside the embedding.
        vocabulary_size (`int`):
            Number of embedding rows of the policy.
        longest (`int`, *optional*):
            Maximum length of a prompt that leaves room for a completion, in tokens.

    Raises:
        ValueError: If a row is empty, too long, or contains an id outside the embedding.
    """
    for row, columns in enumerate(_select_id_columns(dataset)):
        ids = drop_foreign_padding(_select_visible_ids(columns), pad_token_id, vocabulary_size)
        if not ids:
            raise ValueError(f"`{name}` row {row} has no tokens. Drop it with `Dataset.filter`.")
        if max(ids) >= vocabulary_size or min(ids) < 0:
            raise ValueError(
                f"`{name}` row {row} contains token id {max(ids) if max(ids) >= vocabulary_size else min(ids)}, "
                f"outside the policy's embedding of {vocabulary_size} rows. Use the policy's tokenizer, or call "
                "`model.resize_token_embeddings`."
            )
        if longest is not None:
            require_length(len(ids), longest, f"`{name}` row {row}")


def require_length(length: int, longest: int, name: str) -> None:
    """
    Checks that a prompt leaves room for a completion.

    Args:
        length (`int`):
            Length of the prompt, in tokens.
        longest (`int`):
            Maximum length that leaves room for a completion, in tokens.
        name (`str`):
            Name of the prompt, for the error message.

    Raises:
        ValueError: If the prompt is longer.
    """
    if length > longest:
        raise ValueError(
            f"{name} has {length} tokens, but the policy's context leaves only {longest} next to a completion. "
            "Shorten or drop the prompt, or lower the maximum length of a completion (`response_length`, or "
            "`max_completion_length`)."
        )


def decode_prompts(
    prompts: Dataset,
    processing_class: PreTrainedTokenizerBase,
    columns: Sequence[str] = (),
    vocabulary_size: int | None = None,
) -> Dataset:
    """
    Decodes `input_ids` to text prompts, for stages that read no token ids.

    Args:
        prompts ([`~datasets.Dataset`]):
            Dataset with `prompt`, which is kept, or with `input_ids`, see [`decode_ids`]. Ids with 0 in an
            `attention_mask` are dropped.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        columns (`Sequence[str]`, *optional*):
            Further columns to keep.
        vocabulary_size (`int`, *optional*):
            Number of embedding rows of the policy. Ids beyond it are dropped, because they are padding. Pass it if the
            pad token of `processing_class` may be another one than that of the rows.

    Returns:
        `datasets.Dataset`: Columns `prompt`, `columns` and, if present, `answers`.
    """
    prompts = remove_format(prompts)
    kept = [name for name in ("prompt", "answers", *columns) if name in prompts.column_names]
    if "prompt" in kept:
        return prompts.select_columns(kept)
    rows = [_select_visible_ids(row) for row in _select_id_columns(prompts)]
    if vocabulary_size is not None:
        rows = [[token for token in ids if token < vocabulary_size] for ids in rows]
    texts = decode_ids(rows, processing_class)
    return Dataset.from_dict({"prompt": texts, **{name: prompts[name][:] for name in kept}})
