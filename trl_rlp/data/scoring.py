"""One way to turn a prompt and a completion into token ids and a reward, for everything that asks for one."""

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.padding import ensure_pad_token
from trl_rlp.data.row_scores import require_reward_model, score_rows
from trl_rlp.data.turns import Messages, assistant_turn, split_assistant_prefill
from trl_rlp.data.validation import require_samples


__all__ = [
    "batch_scoring_ids",
    "cut_prompts",
    "ensure_pad_token",
    "score",
    "score_samples",
    "scoring_ids",
    "warn_of_cut_prompts",
]

logger = logging.get_logger(__name__)

_WORD = "word"


def scoring_ids(
    processing_class: PreTrainedTokenizerBase,
    prompt: str | Messages,
    completion: str | Messages,
    finished: bool = True,
    max_length: int | None = None,
) -> list[int]:
    """
    Gives the token ids of a prompt and its completion, as the reward model reads them.

    For a finished completion they are the ids that `trl.RewardTrainer` makes of a pair with this prompt and
    completion: text is joined and the EOS token appended unless it is there, messages go through the chat template. An
    unfinished completion (cut by the token limit) gets no EOS, and its chat turn is left open.

    Args:
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer of the reward model. It may differ from the policy's.
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`. Empty where the completion holds the whole text or chat.
        completion (`str` or `list[dict[str, str]]`):
            Text, which after messages becomes one assistant turn (if they end with one, its second part), or messages.
        finished (`bool`, *optional*, defaults to `True`):
            Whether the completion ended by itself.
        max_length (`int`, *optional*):
            Longest result, in tokens. What is longer loses the beginning of its prompt; a BOS token, the end of the
            completion and its EOS stay. TRL drops such pairs instead.

    Returns:
        `list[int]`: token ids, at most `max_length`.

    Raises:
        ValueError: if the tokenizer lacks the EOS token or the chat template that is needed, or `max_length` is below
            1.

    Example:

    ```python
    >>> scoring_ids(tokenizer, "2 + 2 = ", "4") == tokenizer("2 + 2 = 4" + tokenizer.eos_token)["input_ids"]
    True
    ```
    """
    return batch_scoring_ids(processing_class, [prompt], [completion], [finished], max_length)[0]


def batch_scoring_ids(
    processing_class: PreTrainedTokenizerBase,
    prompts: list[str | Messages],
    completions: list[str | Messages],
    finished: list[bool] | None = None,
    max_length: int | None = None,
) -> list[list[int]]:
    """
    Gives [`scoring_ids`] of many rows with one call of the tokenizer, and logs how many were cut.

    Args:
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer of the reward model.
        prompts (`list`):
            Prompts, all text or all messages.
        completions (`list`):
            One completion a prompt.
        finished (`list[bool]`, *optional*):
            Whether each completion ended by itself. Defaults to all.
        max_length (`int`, *optional*):
            Longest result, in tokens.

    Returns:
        `list[list[int]]`: one list of token ids a row.

    Raises:
        ValueError: as [`scoring_ids`], or if the lists differ in length.
    """
    finished = [True] * len(prompts) if finished is None else finished
    if not len(prompts) == len(completions) == len(finished):
        raise ValueError(
            f"`prompts`, `completions` and `finished` have {len(prompts)}, {len(completions)} and {len(finished)} "
            "entries. Give one completion and one boolean a prompt."
        )
    if not prompts:
        return []
    is_chat = isinstance(prompts[0], list)
    render = _render_chat if is_chat else _render_text
    texts = [render(processing_class, *row) for row in zip(prompts, completions, finished, strict=True)]
    # A chat template writes the special tokens itself.
    rows = processing_class(text=texts, add_special_tokens=not is_chat)["input_ids"]
    if max_length is None:
        return rows
    rows, overlong = cut_prompts(rows, processing_class, max_length)
    warn_of_cut_prompts(overlong, len(rows), max_length)
    return rows


def cut_prompts(
    rows: list[list[int]], processing_class: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], int]:
    """
    Cuts rows of [`scoring_ids`] on the left: the beginning of the prompt goes, a BOS token in front of it stays.

    Args:
        rows (`list[list[int]]`):
            Token ids.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer that made them.
        max_length (`int`):
            Longest result, in tokens, at least 1.

    Returns:
        `tuple[list[list[int]], int]`: the rows, and how many were cut.

    Raises:
        ValueError: if `max_length` is below 1.
    """
    if max_length < 1:
        raise ValueError(f"`max_length` must be at least 1 token, got {max_length}. Use None for no limit.")
    overlong = sum(len(ids) > max_length for ids in rows)
    return [_cut_prompt(ids, max_length, processing_class.bos_token_id) for ids in rows], overlong


def warn_of_cut_prompts(overlong: int, total: int, max_length: int) -> None:
    """
    Logs how many texts lost the beginning of their prompt, if any did.

    Args:
        overlong (`int`):
            Texts that were cut.
        total (`int`):
            All texts.
        max_length (`int`):
            The limit, in tokens.
    """
    if overlong:
        logger.warning(
            f"{overlong} of {total} texts are longer than `max_length`={max_length} tokens and lose the beginning of "
            "their prompt. Raise `max_length` or drop long prompts."
        )


def _render_text(processing_class: PreTrainedTokenizerBase, prompt: str, completion: str, finished: bool) -> str:
    eos_token = processing_class.eos_token
    if not finished:
        return prompt + completion
    if eos_token is None:
        raise ValueError("`processing_class` has no EOS token, which ends a finished text. Set its `eos_token`.")
    return prompt + completion if completion.endswith(eos_token) else prompt + completion + eos_token


def _render_chat(
    processing_class: PreTrainedTokenizerBase, prompt: Messages, completion: str | Messages, finished: bool
) -> str:
    if processing_class.chat_template is None:
        raise ValueError("`processing_class` has no chat template, but the prompts are messages. Set `chat_template`.")
    if isinstance(completion, str):
        prompt, begun = split_assistant_prefill(prompt)
        completion = assistant_turn(begun + completion)
    messages = prompt + completion
    if finished:
        return processing_class.apply_chat_template(messages, tokenize=False)
    try:
        return processing_class.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    except ValueError:  # the template rewrites the turn, as those do that set reasoning apart
        return _without_end_of_turn(processing_class, messages)


def _without_end_of_turn(processing_class: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The whole chat less what the template writes behind a turn, which a turn of one known word shows."""
    known = [*messages[:-1], {**messages[-1], "content": _WORD}]
    _, _, end = processing_class.apply_chat_template(known, tokenize=False).rpartition(_WORD)
    return processing_class.apply_chat_template(messages, tokenize=False).removesuffix(end)


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
) -> list[float]:
    """
    Gives the reward of each completion, the same whoever asks: labeling, policy optimization or evaluation.

    The reward is the model's output at its last token that is not padding. Rows are padded on the right, sorted by
    length and batched by token budget; apart from rounding the result does not depend on the batching. The model is
    put into eval mode and handed back as it was.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classifier with `num_labels=1`, on any device; not a wrapper such as `DistributedDataParallel`.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer of `model`.
        prompts (`list`):
            Prompts, all text or all messages.
        completions (`list`):
            One completion a prompt.
        finished (`list[bool]`, *optional*):
            Whether each completion ended by itself and so gets its EOS token. Defaults to all.
        max_length (`int`, *optional*):
            Longest input in tokens; what is longer loses the beginning of its prompt.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Tokens a batch holds, padding included. A longer row is a batch of its own.

    Returns:
        `list[float]`: rewards in the order of the rows, unbounded, higher is better.

    Raises:
        TypeError: if `model` is not a `transformers` model.
        ValueError: if `num_labels` is not 1, the model has no pad token, the lists differ in length, an input is
            longer than the model's context, or a reward is NaN or infinite.

    Example:

    ```python
    >>> score(reward_model, tokenizer, ["2 + 2 = ", "2 + 2 = "], ["4", "5"])
    [0.31, -0.12]
    ```
    """
    require_reward_model(model)
    rows = batch_scoring_ids(processing_class, prompts, completions, finished, max_length)
    return score_rows(model, rows, tokens_per_batch=tokens_per_batch)


def score_samples(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    samples: Dataset,
    *,
    max_length: int | None = None,
) -> list[list[float]]:
    """
    Gives the rewards of all outputs of policy samples.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As [`score`] takes it.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer of `model`.
        samples (`datasets.Dataset`):
            Policy samples: `prompt`, `completions` (n of them), `finished`.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        `list[list[float]]`: n rewards a row.

    Raises:
        TypeError, ValueError: if the samples are not policy samples, or as [`score`] raises.
    """
    require_samples(samples, "samples")
    size = len(samples[0]["completions"])
    rewards = score(
        model,
        processing_class,
        [prompt for prompt in samples["prompt"] for _ in range(size)],
        [text for row in samples["completions"] for text in row],
        [flag for row in samples["finished"] for flag in row],
        max_length=max_length,
    )
    return [rewards[start : start + size] for start in range(0, len(rewards), size)]
