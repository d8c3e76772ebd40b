"""Assistant turns of chat prompts. A completion opens a new turn or continues the last turn of the prompt."""

import json
from collections.abc import Iterable
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trl_rlp.data.special_tokens import tokenize_texts


Message = dict[str, Any]
Messages = list[Message]

THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message holds the thoughts before its content."""


def drop_missing_keys(messages: Messages) -> Messages:
    """
    Removes the keys of messages whose value is `None`.

    Datasets fill such keys in if messages differ in their keys. Many templates write "None" for them, or fail.

    Args:
        messages (`list[dict]`):
            Messages, for example with `"tool_calls": None`.

    Returns:
        `list[dict]`: The same messages without these keys.
    """
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


class ChatTemplateError(ValueError):
    """A chat template refuses messages, for example a system message, or roles that do not alternate."""


def apply_template(processing_class: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> Any:
    """
    Renders messages with the chat template.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        messages (`list[dict]`):
            Messages.
        options:
            Further arguments of `apply_chat_template`.

    Returns:
        The result of `apply_chat_template`.

    Raises:
        ChatTemplateError: If the template refuses the messages.
        ValueError: For the same reasons as `apply_chat_template`.
    """
    try:
        return processing_class.apply_chat_template(messages, **options)
    except TemplateError as error:
        roles = [message.get("role") for message in messages]
        raise ChatTemplateError(
            f"The chat template cannot render messages with the roles {roles}: {error}. Change the messages, for "
            "example move a system message into the first user message, or use another chat template."
        ) from error


def message_text(message: Message) -> str:
    """
    Returns everything that a message says as plain text: its thoughts, its content and its tool calls.

    Args:
        message (`dict`):
            A message. All keys but `role` may be missing.

    Returns:
        `str`: The parts, one below the other. Tool calls are JSON text.
    """
    thoughts = next((message[key] for key in THOUGHT_KEYS if message.get(key)), None)
    calls = [json.dumps(call) for call in message.get("tool_calls") or []]
    return "\n".join(str(part) for part in (thoughts, message.get("content"), *calls) if part)


def final_text(completion: str | Messages) -> str:
    """
    Returns what a completion says in the end: its text, or the content of its last message.

    Args:
        completion (`str` or `list[dict]`):
            Text, or messages: the assistant's, and with tools also their outputs.

    Returns:
        `str`: The text. Thoughts under a key of their own and tool calls are not part of it. It is empty if the last
        message has no content or is not the assistant's.
    """
    if isinstance(completion, str):
        return completion
    return (completion[-1].get("content") or "") if ends_with_assistant(completion) else ""


def is_plain_completion(completion: str | Messages) -> bool:
    """
    Checks whether a completion is nothing but text.

    Args:
        completion (`str` or `list[dict]`):
            Text or messages.

    Returns:
        `bool`: Whether it is text, or one assistant message without thoughts and tool calls.
    """
    if isinstance(completion, str):
        return True
    return len(completion) == 1 and message_text(completion[0]) == final_text(completion)


def ends_with_assistant(prompt: str | Messages) -> bool:
    """
    Checks whether a prompt ends with an assistant message.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`.

    Returns:
        `bool`: Always `False` for text.
    """
    return not isinstance(prompt, str) and bool(prompt) and prompt[-1]["role"] == "assistant"


def split_assistant_prefill(prompt: str | Messages) -> tuple[str | Messages, str]:
    """
    Splits a prompt into the prompt itself and the assistant text at its end, which the completion continues.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`.

    Returns:
        `tuple[str | list[dict[str, str]], str]`: The prompt without a last assistant message, and the content of that
        message. The content is empty if there is no such message, and if the prompt is text.

    Example:

    ```python
    >>> split_assistant_prefill([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}])
    ([{'role': 'user', 'content': '2 + 2?'}], 'It is')
    ```
    """
    return (prompt[:-1], prompt[-1].get("content") or "") if ends_with_assistant(prompt) else (prompt, "")


def build_assistant_turn(text: str) -> Messages:
    """
    Builds the messages of one whole assistant turn.

    Args:
        text (`str`):
            Content of the turn.

    Returns:
        `list[dict[str, str]]`: One message.
    """
    return [{"role": "assistant", "content": text}]


def join_turns(prompt: Messages, completion: str | Messages) -> Messages:
    """
    Joins a chat prompt and what the policy wrote after it. An assistant message at the prompt's end is continued.

    Args:
        prompt (`list[dict]`):
            Messages.
        completion (`str` or `list[dict]`):
            Text, or messages. The first one is the assistant's.

    Returns:
        `list[dict]`: The whole chat.

    Example:

    ```python
    >>> join_turns([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}], " 4.")
    [{'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': 'It is 4.'}]
    ```
    """
    turns = build_assistant_turn(completion) if isinstance(completion, str) else completion
    if not ends_with_assistant(prompt):
        return [*prompt, *turns]
    _, prefill = split_assistant_prefill(prompt)
    continued = {**prompt[-1], **turns[0], "content": prefill + (turns[0].get("content") or "")}
    return [*prompt[:-1], continued, *turns[1:]]


def drop_prefill(prompt: str | Messages, completion: str | Messages) -> str | Messages:
    """
    Removes from a parsed completion the beginning of its turn, which is the last message of the prompt.

    A tokenizer with a response template parses the whole turn, although the policy only continued it.

    Args:
        prompt (`str` or `list[dict]`):
            Text or messages.
        completion (`str` or `list[dict]`):
            Text, which does not change, or messages that `parse_response` returned.

    Returns:
        `str` or `list[dict]`: The completion, without the content of the prompt's last assistant message.
    """
    _, prefill = split_assistant_prefill(prompt)
    if not prefill or isinstance(completion, str):
        return completion
    content = (completion[0].get("content") or "").removeprefix(prefill)
    return [{**completion[0], "content": content}, *completion[1:]]


def build_preference_sides(
    prompt: str | Messages, texts: Iterable[str]
) -> tuple[str | Messages, list[str | Messages]]:
    """
    Converts a prompt and its completions to TRL's preference format. In chats, each completion becomes a whole turn.

    TRL opens a new turn for each side of a pair. If the prompt ends with an assistant message, its text is therefore
    moved from the prompt to both sides.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Prompt of the completions.
        texts (`Iterable[str]`):
            Completions.

    Returns:
        `tuple[str | list[dict[str, str]], list]`: The prompt, and each completion as text or messages.
    """
    prompt, prefill = split_assistant_prefill(prompt)
    return prompt, [text if isinstance(prompt, str) else build_assistant_turn(prefill + text) for text in texts]


def continue_final_message_ids(
    processing_class: PreTrainedTokenizerBase, prompt: Messages, **template_options: Any
) -> list[int]:
    """
    Tokenizes a prompt that ends with an assistant message. The policy then continues this message.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer, with a chat template.
        prompt (`list[dict[str, str]]`):
            Messages. The last one is the assistant's.
        template_options:
            Further arguments of `apply_chat_template`.

    Returns:
        `list[int]`: Token ids.

    Raises:
        ValueError: If the template changes the assistant message, for example if it strips white space or removes
            reasoning. A completion could not be joined to such a message. Also if it refuses the messages.
    """
    _, prefill = split_assistant_prefill(prompt)
    try:
        text = apply_template(
            processing_class,
            drop_missing_keys(prompt),
            tokenize=False,
            continue_final_message=True,
            **template_options,
        )
    except ChatTemplateError:
        raise
    except ValueError:
        text = None
    if text is None or not text.endswith(prefill):
        raise ValueError(
            f"A prompt begins the assistant's turn with {prefill!r}, but the chat template changes this text. Write "
            "it as the template does, often without white space at its end, or remove that message."
        )
    return processing_class(text=text, add_special_tokens=False)["input_ids"]


def prompt_token_ids(
    prompt: str | Messages, processing_class: PreTrainedTokenizerBase, **template_options: Any
) -> list[int]:
    """
    Tokenizes a prompt for generation.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text or messages. Messages get the chat template and a new assistant turn. If the last message is the
            assistant's, it is continued instead.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        template_options:
            Further arguments of `apply_chat_template`.

    Returns:
        `list[int]`: Token ids.

    Raises:
        ValueError: If the prompt is messages and the tokenizer has no chat template, or if the template refuses the
            messages or changes an assistant message at the prompt's end.
    """
    if isinstance(prompt, str):
        return tokenize_texts(processing_class, [prompt])[0]
    if processing_class.chat_template is None:
        raise ValueError("`processing_class` has no chat template, but the prompts are messages. Set `chat_template`.")
    if ends_with_assistant(prompt):
        return continue_final_message_ids(processing_class, prompt, **template_options)
    return apply_template(
        processing_class, drop_missing_keys(prompt), add_generation_prompt=True, return_dict=True, **template_options
    )["input_ids"]


def require_no_assistant_prefill(prompts: Iterable[str | Messages], policy_trainer: str) -> None:
    """
    Checks that no prompt ends with an assistant message, for TRL trainers that would open a second turn after it.

    Args:
        prompts (`Iterable`):
            Text or messages.
        policy_trainer (`str`):
            Name of the trainer, for the error message.

    Raises:
        ValueError: If a prompt ends with an assistant message.
    """
    for row, prompt in enumerate(prompts):
        if ends_with_assistant(prompt):
            raise ValueError(
                f"`prompt_dataset` row {row} ends with an assistant message, but `policy_trainer`={policy_trainer!r} "
                "does not continue a turn. Drop that message, or use PPO, which does."
            )
