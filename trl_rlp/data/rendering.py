"""The text of a prompt and its completion, as the reward model reads it."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_rlp.data.turns import THOUGHT_KEYS, Message, Messages, apply_template, drop_missing_keys, join_turns


_WORD = "word"
_END_OF_THOUGHT = "END_OF_THOUGHT"


def render_text(processing_class: PreTrainedTokenizerBase, prompt: str, completion: str, finished: bool) -> str:
    """
    Joins a text prompt and its completion. EOS follows a finished completion.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        prompt (`str`):
            Prompt.
        completion (`str`):
            Completion. It may already end with EOS.
        finished (`bool`):
            Whether the completion ended with EOS.

    Returns:
        `str`: The text.

    Raises:
        ValueError: If the tokenizer lacks an EOS token that is needed.
    """
    eos_token = processing_class.eos_token
    if not finished:
        return prompt + completion
    if eos_token is None:
        raise ValueError("`processing_class` has no EOS token, but finished texts end with it. Set its `eos_token`.")
    return prompt + completion if completion.endswith(eos_token) else prompt + completion + eos_token


def render_chat(
    processing_class: PreTrainedTokenizerBase,
    prompt: Messages,
    completion: str | Messages,
    finished: bool,
    template_options: dict[str, Any],
) -> str:
    """
    Renders a chat prompt and its completion with the chat template: all messages, with thoughts and tool calls.

    A finished chat is rendered whole. In an unfinished one, the turn that the policy was writing stays open.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        prompt (`list[dict]`):
            Messages.
        completion (`str` or `list[dict]`):
            Text becomes an assistant turn, or continues the one that ends the prompt. Messages follow the prompt.
        finished (`bool`):
            Whether the completion ended with EOS.
        template_options (`dict`):
            Further arguments of `apply_chat_template`.

    Returns:
        `str`: The text, with the special tokens that the template writes.

    Raises:
        ValueError: If the tokenizer has no chat template, or its template refuses the messages.
    """
    if processing_class.chat_template is None:
        raise ValueError("`processing_class` has no chat template, but the prompts are messages. Set `chat_template`.")
    chat = join_turns(prompt, completion) if isinstance(completion, str) else [*prompt, *completion]
    chat = drop_missing_keys(chat)
    if finished or chat[-1]["role"] != "assistant":  # a completion that stops after a tool's output has no open turn
        return apply_template(processing_class, chat, tokenize=False, **template_options)
    return _render_open_turn(processing_class, chat, template_options)


def _render_open_turn(
    processing_class: PreTrainedTokenizerBase, chat: Messages, template_options: dict[str, Any]
) -> str:
    """Renders a chat up to the last word that the policy wrote: a tool call, an answer or a thought, in this order."""
    last = chat[-1]
    if last.get("tool_calls"):
        return _remove_end_of_turn(processing_class, chat, {"role": last["role"]}, template_options)
    thoughts = {key: last[key] for key in THOUGHT_KEYS if last.get(key)}
    if thoughts and not last.get("content"):
        return _render_open_thought(processing_class, chat, thoughts, template_options)
    chat = [*chat[:-1], {"content": "", **last}]
    try:
        return apply_template(processing_class, chat, tokenize=False, continue_final_message=True, **template_options)
    except ValueError:  # the template rewrites the turn, for example to separate the reasoning from the answer
        return _remove_end_of_turn(processing_class, chat, last, template_options)


def _render_open_thought(
    processing_class: PreTrainedTokenizerBase, chat: Messages, thoughts: Message, template_options: dict[str, Any]
) -> str:
    marked = {key: text + _END_OF_THOUGHT for key, text in thoughts.items()}
    last = {"content": "", **chat[-1]}
    text = apply_template(processing_class, [*chat[:-1], {**last, **marked}], tokenize=False, **template_options)
    before, mark, _ = text.rpartition(_END_OF_THOUGHT)
    # Some templates do not render thoughts.
    return before if mark else _remove_end_of_turn(processing_class, [*chat[:-1], last], last, template_options)


def _remove_end_of_turn(
    processing_class: PreTrainedTokenizerBase, chat: Messages, last: Message, template_options: dict[str, Any]
) -> str:
    """
    Renders the chat without the text that the template writes after the last turn.

    A chat whose last turn is `last` with one known word as its content shows what that text is.
    """

    def render(messages: Messages) -> str:
        return apply_template(processing_class, messages, tokenize=False, **template_options)

    _, mark, end_of_turn = render([*chat[:-1], {**last, "content": _WORD}]).rpartition(_WORD)
    # Some templates read lists of parts only, and do not render text.
    return render(chat).removesuffix(end_of_turn) if mark else render(chat)
