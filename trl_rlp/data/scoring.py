"""The one function that scores completions, and the token ids that it scores."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.padding import ensure_pad_token
from trl_rlp.data.rendering import render_chat, render_text
from trl_rlp.data.row_scores import require_reward_model, score_rows
from trl_rlp.data.special_tokens import tokenize_texts
from trl_rlp.data.template_options import list_template_options
from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import require_samples


__all__ = [
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
) -> list[list[int]]:
    """
    Returns the [`scoring_ids`] of many rows with one tokenizer call, and logs how many rows were truncated.

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

    Returns:
        `list[list[int]]`: One list of token ids per row.

    Raises:
        ValueError: If the lists differ in length, or for the same reasons as [`scoring_ids`].
    """
    finished = [True] * len(prompts) if finished is None else finished
    if not len(prompts) == len(completions) == len(finished):
        raise ValueError(
            f"`prompts`, `completions` and `finished` have {len(prompts)}, {len(completions)} and {len(finished)} "
            "entries. Pass one completion and one boolean per prompt."
        )
    if not prompts:
        return []
    records = zip(prompts, completions, finished, strict=True)
    if isinstance(prompts[0], list):
        options = [{}] * len(prompts) if template_options is None else template_options
        texts = [render_chat(processing_class, *row, kwargs) for row, kwargs in zip(records, options, strict=True)]
        # A chat template writes the special tokens itself.
        rows = processing_class(text=texts, add_special_tokens=False)["input_ids"]
    else:
        rows = tokenize_texts(processing_class, [render_text(processing_class, *row) for row in records])
    cut = cut_prompts(rows, processing_class, max_length)
    warn_of_cut_prompts(count_overlong(rows, max_length), len(rows), max_length)
    return cut


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
    rows = batch_scoring_ids(processing_class, prompts, completions, finished, max_length, template_options)
    return score_rows(model, rows, tokens_per_batch=tokens_per_batch)


def score_samples(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    samples: Dataset,
    *,
    max_length: int | None = None,
) -> list[list[float]]:
    """
    Computes the rewards of all completions of policy samples.

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
    size = len(samples[0]["completions"])
    options = list_template_options(samples)
    rewards = score(
        model,
        processing_class,
        [prompt for prompt in samples["prompt"] for _ in range(size)],
        [text for row in samples["completions"] for text in row],
        [flag for row in samples["finished"] for flag in row],
        max_length=max_length,
        template_options=None if options is None else [kwargs for kwargs in options for _ in range(size)],
    )
    return [rewards[start : start + size] for start in range(0, len(rewards), size)]
