"""The one function that scores completions, and the token ids that it scores."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.columns import Batch, add_columns, flatten_samples, read_columns, require_sample_columns
from trl_rlp.data.padding import ensure_pad_token
from trl_rlp.data.rendering import render_chat, render_text
from trl_rlp.data.row_scores import require_reward_model, score_rows
from trl_rlp.data.special_tokens import tokenize_texts
from trl_rlp.data.template_options import list_template_options
from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import require_samples
from trl_rlp.data.worker_models import hold_reward_model, prepare_worker


__all__ = [
    "Score",
    "batch_scoring_ids",
    "count_overlong",
    "cut_prompts",
    "ensure_pad_token",
    "score",
    "score_samples",
    "scoring_ids",
    "warn_of_cut_prompts",
]

logger = logging.get_logger(__name__)

_TEXTS_AT_ONCE = 4096
"""Number of texts in one call of the tokenizer, whose result takes about 100 bytes for each token."""
_PROMPTS_AT_ONCE = 2**14
"""Number of prompts whose completions are sorted by length together, so that memory does not grow with the data."""


def scoring_ids(
    processing_class: PreTrainedTokenizerBase,
    prompt: str | Messages,
    completion: str | Messages,
    finished: bool = True,
    max_length: int | None = None,
    template_options: dict[str, Any] | None = None,
) -> list[int]:
    """
    Returns the token ids of a prompt and its completion, as the reward model reads them.

    For a finished completion, the ids are the same as `trl.RewardTrainer`'s for this prompt and completion. Prompt and
    completion text are joined, and the EOS token is appended if it is missing. Messages go through the chat template,
    with thoughts and tool calls. An unfinished completion (one that the token limit stopped) gets no EOS token, and
    its chat turn stays open. A tokenizer that appends EOS itself does not change this: there is one EOS or none.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model. It may differ from the policy's tokenizer.
        prompt (`str` or `list[dict]`):
            Text, or messages with `role` and `content`. Empty if the completion holds the whole text or chat.
        completion (`str` or `list[dict]`):
            Text or messages. After messages, text becomes one assistant turn. If the prompt ends with an assistant
            message, the text continues that turn. A key of a message that is `None` counts as missing.
        finished (`bool`, *optional*, defaults to `True`):
            Whether the completion ended with EOS.
        max_length (`int`, *optional*):
            Maximum number of tokens. Longer rows lose the beginning of their prompt. A BOS token, the end of the
            completion and its EOS token stay. TRL drops such pairs instead.
        template_options (`dict`, *optional*):
            Further arguments of `apply_chat_template`, such as `tools`.

    Returns:
        `list[int]`: Token ids, at most `max_length`.

    Raises:
        ValueError: If the tokenizer lacks a required EOS token or chat template, or if `max_length` is below 1.

    Example:

    ```python
    >>> scoring_ids(tokenizer, "2 + 2 = ", "4") == tokenizer("2 + 2 = 4" + tokenizer.eos_token)["input_ids"]
    True
    ```
    """
    options = None if template_options is None else [template_options]
    return batch_scoring_ids(processing_class, [prompt], [completion], [finished], max_length, options)[0]


def batch_scoring_ids(
    processing_class: PreTrainedTokenizerBase,
    prompts: list[str | Messages],
    completions: list[str | Messages],
    finished: list[bool] | None = None,
    max_length: int | None = None,
    template_options: Sequence[dict[str, Any]] | None = None,
    pack: Callable[[list[int]], Any] = list,
) -> list[Any]:
    """
    Returns the [`scoring_ids`] of many rows, and logs how many rows were truncated. It tokenizes some rows at a time.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        prompts (`list`):
            Prompts, all text or all messages.
        completions (`list`):
            One completion per prompt.
        finished (`list[bool]`, *optional*):
            Whether each completion ended with EOS. Defaults to `True` for all.
        max_length (`int`, *optional*):
            Maximum number of tokens per row.
        template_options (`Sequence[dict]`, *optional*):
            Further arguments of `apply_chat_template` for each row, see [`list_template_options`].
        pack (`Callable`, *optional*):
            Called with the token ids of each row. It returns what is kept of them. Defaults to the list itself.

    Returns:
        `list[list[int]]`: The token ids of each row, or what `pack` returns for them.

    Raises:
        ValueError: If the lists differ in length, or for the same reasons as [`scoring_ids`].
    """
    finished = [True] * len(prompts) if finished is None else finished
    if not len(prompts) == len(completions) == len(finished):
        raise ValueError(
            f"`prompts`, `completions` and `finished` have {len(prompts)}, {len(completions)} and {len(finished)} "
            "entries. Pass one completion and one boolean per prompt."
        )
    options = [{}] * len(prompts) if template_options is None else template_options
    rows: list[Any] = []
    overlong = 0
    for start in range(0, len(prompts), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        ids = _tokenize(processing_class, prompts[part], completions[part], finished[part], options[part])
        overlong += count_overlong(ids, max_length)
        rows += map(pack, cut_prompts(ids, processing_class, max_length))
    warn_of_cut_prompts(overlong, len(rows), max_length)
    return rows


def _tokenize(
    processing_class: PreTrainedTokenizerBase,
    prompts: list[str | Messages],
    completions: list[str | Messages],
    finished: list[bool],
    template_options: Sequence[dict[str, Any]],
) -> list[list[int]]:
    records = zip(prompts, completions, finished, strict=True)
    if isinstance(prompts[0], str):
        return tokenize_texts(processing_class, [render_text(processing_class, *row) for row in records])
    rows = zip(records, template_options, strict=True)
    texts = [render_chat(processing_class, *row, kwargs) for row, kwargs in rows]
    # A chat template writes the special tokens itself.
    return processing_class(text=texts, add_special_tokens=False)["input_ids"]


def cut_prompts(
    rows: list[list[int]], processing_class: PreTrainedTokenizerBase, max_length: int | None
) -> list[list[int]]:
    """
    Truncates rows of [`scoring_ids`] on the left. It logs nothing.

    A truncated row loses the beginning of its prompt. A BOS token at its start stays.

    Args:
        rows (`list[list[int]]`):
            Token ids.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the rows.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, at least 1. `None` changes nothing.

    Returns:
        `list[list[int]]`: The rows in their order.

    Raises:
        ValueError: If `max_length` is below 1.
    """
    if max_length is None:
        return rows
    if max_length < 1:
        raise ValueError(f"`max_length` must be at least 1 token, got {max_length}. Use None for no limit.")
    return [_cut_prompt(ids, max_length, processing_class.bos_token_id) for ids in rows]


def count_overlong(rows: list[list[int]], max_length: int | None) -> int:
    """
    Counts the rows that [`cut_prompts`] truncates.

    Args:
        rows (`list[list[int]]`):
            Token ids, before truncation.
        max_length (`int`, *optional*):
            Maximum number of tokens per row. `None` means no limit.

    Returns:
        `int`: Number of rows that are longer.
    """
    return 0 if max_length is None else sum(len(ids) > max_length for ids in rows)


def warn_of_cut_prompts(overlong: int, total: int, max_length: int | None) -> None:
    """
    Logs how many texts lost the beginning of their prompt. Logs nothing if none did.

    Args:
        overlong (`int`):
            Number of truncated texts.
        total (`int`):
            Number of texts.
        max_length (`int`, *optional*):
            The limit, in tokens. `None` if there is none, so that no text is truncated.
    """
    if overlong:
        logger.warning(
            f"{overlong} of {total} texts are longer than `max_length`={max_length} tokens and lose the beginning of "
            "their prompt. Raise `max_length` or drop long prompts."
        )


def _cut_prompt(ids: list[int], max_length: int, bos_token_id: int | None) -> list[int]:
    if len(ids) <= max_length:
        return ids
    if ids[0] == bos_token_id and max_length > 1:
        return ids[:1] + ids[1 - max_length :]
    return ids[-max_length:]


def score(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    prompts: list[str | Messages],
    completions: list[str | Messages],
    finished: list[bool] | None = None,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
    template_options: Sequence[dict[str, Any]] | None = None,
    share_batches: bool = False,
) -> list[float]:
    """
    Computes the reward of each completion. Labeling, policy optimization and evaluation all use this function.

    The reward is the model's output at the last token that is not padding. Rows are sorted by length, batched by token
    budget and padded on the right. Apart from rounding, the rewards do not depend on the batches. The model runs in
    evaluation mode, and its modules return to their own modes afterwards.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classifier with `num_labels=1`, on any device. Wrappers such as `DistributedDataParallel` are not
            accepted.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        prompts (`list`):
            Prompts, all text or all messages.
        completions (`list`):
            One completion per prompt.
        finished (`list[bool]`, *optional*):
            Whether each completion ended with EOS. Only finished completions get an EOS token. Defaults to `True` for
            all.
        max_length (`int`, *optional*):
            Maximum number of tokens per row. Longer rows lose the beginning of their prompt.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per batch, padding included. A longer row forms its own batch.
        template_options (`Sequence[dict]`, *optional*):
            Further arguments of `apply_chat_template` for each row, such as `tools`.
        share_batches (`bool`, *optional*, defaults to `False`):
            Whether the processes of `accelerate launch` share the batches. Each of them must then call the function
            with the same rows, and each gets all rewards. With equal devices and numbers of threads, they are equal to
            the last bit for any number of processes. By default, each process scores its own rows.

    Returns:
        `list[float]`: One reward per row, in order. Rewards are unbounded, and higher is better.

    Raises:
        TypeError: If `model` is not a `transformers` model.
        ValueError: If `num_labels` is not 1, the model has no pad token, the lists differ in length, a row is longer
            than the model's context, or a reward is NaN or infinite.

    Example:

    ```python
    >>> score(reward_model, tokenizer, ["2 + 2 = ", "2 + 2 = "], ["4", "5"])
    [0.31, -0.12]
    ```
    """
    require_reward_model(model)
    rows = batch_scoring_ids(processing_class, prompts, completions, finished, max_length, template_options, _pack_ids)
    return score_rows(model, rows, tokens_per_batch=tokens_per_batch, share_batches=share_batches)


def _pack_ids(ids: list[int]) -> array:
    return array("i", ids)  # 4 bytes for a token instead of about 40


def score_samples(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    samples: Dataset,
    *,
    max_length: int | None = None,
) -> list[list[float]]:
    """
    Computes the rewards of all completions of policy samples.

    The processes of `accelerate launch` share the batches, so each of them must call this function with the same
    samples.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, as in [`score`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        samples ([`~datasets.Dataset`]):
            Policy samples with `prompt`, n `completions` and `finished`. The columns `tools` and
            `chat_template_kwargs` are optional arguments of the chat template.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].

    Returns:
        `list[list[float]]`: n rewards per row.

    Raises:
        TypeError, ValueError: If `samples` are not policy samples, or for the same reasons as [`score`].
    """
    samples = require_samples(samples, "samples")
    return Score(model, processing_class, max_length=max_length).score(samples, share_batches=True)


class Score:
    """
    Adds rewards to batches of policy samples. [`score_samples`] is built on it.

    It runs in `Dataset.map` and in Ray Data's `map_batches`. The rewards of a row do not depend on other rows, apart
    from rounding. Each process loads the reward model when it needs it for the first time.

    Args:
        reward_model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, or its folder or Hub name. A loaded model cannot be sent to other processes.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of a loaded `reward_model`.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        options:
            Further arguments of [`load_reward_model`] for a folder or Hub name, such as `dtype`.

    Raises:
        TypeError: If there are options for a loaded model, or a tokenizer for a named one.
        ValueError: If a loaded model has no tokenizer.

    Example:

    ```python
    >>> scored = samples.map(Score("my-reward-model"), batched=True, with_rank=True, num_proc=2)
    >>> scored[0]["rewards"]
    [0.31, -0.12]
    ```
    """

    def __init__(
        self,
        reward_model: str | Path | PreTrainedModel | PeftModel,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
        *,
        max_length: int | None = None,
        **options: Any,
    ):
        self._reward_model = hold_reward_model(reward_model, reward_processing_class, options)
        self.max_length = max_length

    def __call__(self, batch: Batch, rank: int | None = None) -> Batch:
        """
        Scores the completions of a batch.

        Args:
            batch (`Mapping` or `pyarrow.Table`):
                Columns `prompt`, `completions` and `finished`, and optionally `tools` and `chat_template_kwargs`, as
                for [`read_columns`].
            rank (`int`, *optional*):
                Number of the worker, which selects its accelerator.

        Returns:
            `dict[str, list]` or `pyarrow.Table`: The batch with the column `rewards`: one reward for each completion.

        Raises:
            TypeError, ValueError: If the batch does not hold policy samples, or for the same reasons as [`score`].
        """
        prepare_worker(rank)
        columns = read_columns(batch)
        require_sample_columns(columns, ["prompt", "completions", "finished"])
        return add_columns(batch, {"rewards": self.score(columns)}, {"rewards": pa.list_(pa.float64())})

    def score(self, samples: Dataset | Mapping[str, list], *, share_batches: bool = False) -> list[list[float]]:
        """
        Computes the rewards of policy samples that are already checked.

        Args:
            samples ([`~datasets.Dataset`] or `Mapping[str, list]`):
                The samples, or a batch of their columns as plain Python values.
            share_batches (`bool`, *optional*, defaults to `False`):
                Whether the processes of `accelerate launch` share the batches, as in [`score`].

        Returns:
            `list[list[float]]`: One reward for each completion of each row.
        """
        parts = samples.iter(_PROMPTS_AT_ONCE) if isinstance(samples, Dataset) else [samples]
        rewards: list[list[float]] = []
        first_row = 0
        for part in parts:
            rewards += self._score_part(part, first_row, share_batches)
            first_row += sum(map(len, part["completions"]))
        return rewards

    def _score_part(self, samples: Mapping[str, list], first_row: int, share_batches: bool) -> list[list[float]]:
        sizes = [len(completions) for completions in samples["completions"]]
        options = list_template_options(samples)
        model, processing_class = self._reward_model.get()
        require_reward_model(model)
        rows = batch_scoring_ids(
            processing_class,
            *flatten_samples(samples),
            self.max_length,
            options and [row for row, size in zip(options, sizes, strict=True) for _ in range(size)],
            _pack_ids,
        )
        rewards = iter(score_rows(model, rows, share_batches=share_batches, first_row=first_row))
        return [list(islice(rewards, size)) for size in sizes]
