"""Where a completion stands: in an assistant's turn of its own, or in one that the prompt begins."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase


Messages = list[dict[str, str]]


def ends_with_assistant(prompt: str | Messages) -> bool:
    """
    Says whether a prompt ends with the beginning of an assistant's turn.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`.

    Returns:
        `bool`. Text begins no turn.
    """
    return not isinstance(prompt, str) and bool(prompt) and prompt[-1]["role"] == "assistant"


def split_assistant_prefill(prompt: str | Messages) -> tuple[str | Messages, str]:
    """
    Parts a prompt from the beginning of the assistant's turn that its completion goes on with.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`.

    Returns:
        `tuple[str | list[dict[str, str]], str]`: the prompt without that turn, and the turn's text so far. The text is
        empty where the completion opens a turn of its own, and where the prompt is text.

    Example:

    ```python
    >>> split_assistant_prefill([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}])
    ([{'role': 'user', 'content': '2 + 2?'}], 'It is')
    ```
    """
    return (prompt[:-1], prompt[-1]["content"]) if ends_with_assistant(prompt) else (prompt, "")


def assistant_turn(text: str) -> Messages:
    """
    Gives the messages of one whole turn of the assistant.

    Args:
        text (`str`):
            What it says.

    Returns:
        `list[dict[str, str]]`: one message.
    """
    return [{"role": "assistant", "content": text}]


def preference_sides(prompt: str | Messages, texts: Iterable[str]) -> tuple[str | Messages, list[str | Messages]]:
    """
    Gives a prompt and outputs for it as TRL's preference format has them: in chats each output is a whole turn.

    TRL opens a new turn for each side, so what the prompt begins of a turn goes from the prompt to every side.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            What the outputs were sampled for.
        texts (`Iterable[str]`):
            Outputs.

    Returns:
        `tuple[str | list[dict[str, str]], list]`: the prompt, and each output as text or as messages.
    """
    prompt, begun = split_assistant_prefill(prompt)
    return prompt, [text if isinstance(prompt, str) else assistant_turn(begun + text) for text in texts]


def continue_final_message_ids(
    processing_class: PreTrainedTokenizerBase, prompt: Messages, **template_options: Any
) -> list[int]:
    """
    Gives a prompt that begins an assistant's turn as the policy reads it before it goes on.

    Args:
        processing_class (`transformers.PreTrainedTokenizerBase`):
            The policy's tokenizer, with a chat template.
        prompt (`list[dict[str, str]]`):
            Messages, the last one the assistant's.
        template_options:
            Further arguments of `apply_chat_template`.

    Returns:
        `list[int]`: token ids.

    Raises:
        ValueError: if the template changes what is begun, as those do that trim white space or drop reasoning: then
            no completion of it could be put behind it again.
    """
    begun = prompt[-1]["content"]
    try:
        text = processing_class.apply_chat_template(
            prompt, tokenize=False, continue_final_message=True, **template_options
        )
    except ValueError:
        text = None
    if text is None or not text.endswith(begun):
        raise ValueError(
            f"A prompt begins the assistant's turn with {begun!r}, which the chat template does not keep. Write it as "
            "the template does, often without white space at its end, or leave that message out."
        )
    return processing_class(text=text, add_special_tokens=False)["input_ids"]


def prompt_token_ids(prompt: str | Messages, processing_class: PreTrainedTokenizerBase) -> list[int]:
    """
    Gives a prompt as the policy reads it before it answers.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages, which get the chat template and a new assistant turn; if the last one is the
            assistant's, it is continued.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.

    Returns:
        `list[int]`: token ids.

    Raises:
        ValueError: if the prompt is messages and the tokenizer has no chat template, or one that changes a turn that
            the prompt begins.
    """
    if isinstance(prompt, str):
        return processing_class(prompt)["input_ids"]
    if processing_class.chat_template is None:
        raise ValueError("`processing_class` has no chat template, but the prompts are messages. Set `chat_template`.")
    if ends_with_assistant(prompt):
        return continue_final_message_ids(processing_class, prompt)
    return processing_class.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def require_no_assistant_prefill(prompts: Iterable[str | Messages], policy_trainer: str) -> None:
    """
    Refuses prompts that begin an assistant's turn, for trainers of TRL's that would open a second one behind it.

    Args:
        prompts (`Iterable`):
            Text or messages.
        policy_trainer (`str`):
            Name of the trainer, for the message.

    Raises:
        ValueError: if a prompt ends with an assistant's message.
    """
    for row, prompt in enumerate(prompts):
        if ends_with_assistant(prompt):
            raise ValueError(
                f"`prompt_dataset` row {row} ends with an assistant message, but `policy_trainer`={policy_trainer!r} "
                "does not continue a turn. Drop that message, or use PPO, which does."
            )
