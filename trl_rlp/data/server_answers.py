"""Reading of a server's answers: the texts, and whether each of them ended by itself."""

import json
from typing import Any, NamedTuple

from transformers.utils import logging


logger = logging.get_logger(__name__)

FINISHED = {"complete", "end_of_text", "end_turn", "eos", "eos_token", "stop", "stop_sequence", "stopped"}
"""Finish reasons, in lower case, of a completion that ended by itself."""

UNFINISHED = {
    "abort",
    "cancelled",
    "content_filter",
    "function_call",
    "length",
    "max_output_tokens",
    "max_tokens",
    "model_length",
    "recitation",
    "refusal",
    "safety",
    "tool_calls",
    "tool_use",
}
"""Finish reasons, in lower case, of a completion that the server or a limit ended."""

REASONING = ("reasoning_content", "reasoning", "reasoning_details")
"""Fields of a message in which servers return the model's thoughts."""


class Choice(NamedTuple):
    """
    One completion of a server.

    Args:
        text (`str`, *optional*):
            The completion. `None` if there is none: the message has no content, for example a refusal, or the model
            was still reasoning at the token limit.
        finished (`bool`):
            Whether the completion ended by itself.
    """

    text: str | None
    finished: bool


def read_choices(body: str, is_chat: bool, named_reasons: set[Any]) -> list[Choice]:
    """
    Reads the completions from the body of a response.

    A finish reason that is neither in [`FINISHED`] nor in [`UNFINISHED`] counts as unfinished, with a warning.

    Args:
        body (`str`):
            JSON text.
        is_chat (`bool`):
            Whether the request was sent to `/chat/completions`.
        named_reasons (`set`):
            Unknown finish reasons with an earlier warning. New ones are added.

    Returns:
        `list[Choice]`: The completions, or an empty list if the body is something else.
    """
    try:
        choices = json.loads(body)["choices"]
        reasons = [choice.get("finish_reason") for choice in choices]
        messages = [choice["message"] if is_chat else {"content": choice["text"]} for choice in choices]
        texts = [_join_parts(message.get("content")) for message in messages]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    if "error" in reasons or not all(isinstance(text, str) or (text is None and is_chat) for text in texts):
        return []
    endings = [_is_finished(reason, named_reasons) for reason in reasons]
    return [
        Choice(
            None if is_chat and _has_no_answer(message, text, finished) else _replace_lone_surrogates(text), finished
        )
        for message, text, finished in zip(messages, texts, endings, strict=True)
    ]


def read_error(body: str) -> int | None:
    """
    Reads the status that a gateway reports in the body of a response with status 200.

    Args:
        body (`str`):
            Body of the response.

    Returns:
        `int`: The status, or `None` if the body names none.
    """
    try:
        status = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return status if isinstance(status, int) and 400 <= status < 600 else None


def _is_finished(reason: Any, named_reasons: set[Any]) -> bool:
    name = str(reason).lower()
    if name not in FINISHED | UNFINISHED and name not in named_reasons:
        named_reasons.add(name)
        logger.warning(
            f"The server ended a completion with the unknown finish reason {reason!r}. Such completions count as "
            "unfinished."
        )
    return name in FINISHED


def _join_parts(content: Any) -> Any:
    """Joins the text of a content that is a list of parts. Other parts, such as thoughts, are left out."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _has_no_answer(message: dict[str, Any], text: str | None, finished: bool) -> bool:
    """Checks whether a message has no content, or was cut before its content began."""
    if text is None:
        return True
    is_thought = text == "" or (not text.strip() and any(message.get(name) for name in REASONING))
    return is_thought and not finished


def _replace_lone_surrogates(text: str) -> str:
    """Replaces half surrogate pairs, which UTF-8 cannot encode. Servers that cut inside a character send them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
