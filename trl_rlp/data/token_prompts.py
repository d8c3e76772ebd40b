"""Prompts that are token ids already, as scripts of the former PPO trainer bring them."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase


class TokenPrompt(str):
    """
    A prompt of given token ids, which reach the policy unchanged; read as text it is what they decode to.

    Args:
        text (`str`):
            The decoded ids, without special tokens.
        ids (`Sequence[int]`):
            Token ids of the policy's tokenizer.
    """

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int] = ()):
        # The default serves copy and pickle, which restore the attribute afterwards.
        self = super().__new__(cls, text)
        self.ids = list(ids)
        return self


def add_prompts(rows: list[dict], processing_class: PreTrainedTokenizerBase, vocabulary_size: int) -> list[dict]:
    """
    Gives rows that have a `prompt`, made of `input_ids` where there is none.

    Args:
        rows (`list[dict]`):
            Rows of a data set: each with `prompt` (text or messages) or `input_ids`, of which those are left out that
            an `attention_mask` hides.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Rows of the policy's embedding. A pad token beyond it, which scripts add without resizing, is left out.

    Returns:
        `list[dict]`: the same rows, with [`TokenPrompt`]s.
    """
    return [row if "prompt" in row else _with_prompt(row, processing_class, vocabulary_size) for row in rows]


def _with_prompt(row: dict, processing_class: PreTrainedTokenizerBase, vocabulary_size: int) -> dict:
    ids = drop_foreign_padding(_seen(row), processing_class.pad_token_id, vocabulary_size)
    text = processing_class.decode(ids, skip_special_tokens=True)
    rest = {name: value for name, value in row.items() if name not in ("input_ids", "attention_mask")}
    return {**rest, "prompt": TokenPrompt(text, ids)}


def _seen(row: dict) -> list[int]:
    """Token ids that a mask beside them does not hide: scripts may bring rows that are padded already."""
    mask = row.get("attention_mask")
    return row["input_ids"] if mask is None else [i for i, seen in zip(row["input_ids"], mask, strict=True) if seen]


def _columns(dataset: Dataset) -> list[str]:
    return [column for column in ("input_ids", "attention_mask") if column in dataset.column_names]


def drop_foreign_padding(ids: Sequence[int], pad_token_id: int | None, vocabulary_size: int) -> list[int]:
    """
    Gives token ids without pad tokens that the embedding does not have.

    Args:
        ids (`Sequence[int]`):
            Token ids.
        pad_token_id (`int`, *optional*):
            The tokenizer's pad token.
        vocabulary_size (`int`):
            Rows of the embedding.

    Returns:
        `list[int]`: all other ids, unchanged.
    """
    is_foreign = pad_token_id is not None and pad_token_id >= vocabulary_size
    return [int(token) for token in ids if not (is_foreign and token == pad_token_id)]


def require_token_ids(
    dataset: Dataset, name: str, pad_token_id: int | None, vocabulary_size: int, longest: int | None
) -> None:
    """
    Checks the `input_ids` of a data set against the policy.

    Args:
        dataset (`datasets.Dataset`):
            With a column `input_ids`, and possibly `attention_mask`.
        name (`str`):
            Name of the argument, for the message.
        pad_token_id (`int`, *optional*):
            The tokenizer's pad token, which may lie outside the embedding.
        vocabulary_size (`int`):
            Rows of the policy's embedding.
        longest (`int`, *optional*):
            Tokens of a prompt that leave room for a completion.

    Raises:
        ValueError: if a row is empty, too long, or holds an id outside the embedding.
    """
    for row, entry in enumerate(dataset.select_columns(_columns(dataset))):
        ids = drop_foreign_padding(_seen(entry), pad_token_id, vocabulary_size)
        if not ids:
            raise ValueError(f"`{name}` row {row} has no tokens. Drop it with `Dataset.filter`.")
        if max(ids) >= vocabulary_size or min(ids) < 0:
            raise ValueError(
                f"`{name}` row {row} holds token id {max(ids) if max(ids) >= vocabulary_size else min(ids)}, outside "
                f"the policy's embedding of {vocabulary_size} rows. Tokenize it with the policy's tokenizer, or call "
                "`model.resize_token_embeddings`."
            )
        if longest is not None:
            require_length(len(ids), longest, f"`{name}` row {row}")


def require_length(length: int, longest: int, name: str) -> None:
    """
    Checks that a prompt leaves room for a completion.

    Args:
        length (`int`):
            Its tokens.
        longest (`int`):
            Tokens that leave room.
        name (`str`):
            What the message calls it.

    Raises:
        ValueError: if it is longer.
    """
    if length > longest:
        raise ValueError(
            f"{name} has {length} tokens, but the policy's context leaves {longest} beside a completion of "
            "`max_completion_length`. Shorten or drop the prompt, or lower `max_completion_length`."
        )


def decode_prompts(prompts: Dataset, processing_class: PreTrainedTokenizerBase) -> Dataset:
    """
    Gives prompts that text can be made of, for what reads no token ids.

    Args:
        prompts (`datasets.Dataset`):
            `prompt`, or `input_ids`, which are decoded without special tokens and what an `attention_mask` hides.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.

    Returns:
        `datasets.Dataset`: `prompt`, and `answers` if there are any.
    """
    kept = [name for name in ("prompt", "answers") if name in prompts.column_names]
    if "prompt" in kept:
        return prompts.select_columns(kept)
    ids = [_seen(row) for row in prompts.select_columns(_columns(prompts))]
    texts = processing_class.batch_decode(ids, skip_special_tokens=True)
    return Dataset.from_dict({"prompt": texts, **{name: prompts[name][:] for name in kept}})
