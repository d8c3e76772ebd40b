"""Chat prompts that end in the middle of an assistant's turn, which the completion goes on with."""

from collections.abc import Iterable


Messages = list[dict[str, str]]


def begins_turn(prompt: str | Messages) -> bool:
    """
    Says whether a prompt ends with the beginning of an assistant's turn.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`.

    Returns:
        `bool`. Text begins no turn.
    """
    return not isinstance(prompt, str) and bool(prompt) and prompt[-1]["role"] == "assistant"


def split_begun_turn(prompt: str | Messages) -> tuple[str | Messages, str]:
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
    >>> split_begun_turn([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}])
    ([{'role': 'user', 'content': '2 + 2?'}], 'It is')
    ```
    """
    return (prompt[:-1], prompt[-1]["content"]) if begins_turn(prompt) else (prompt, "")


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
    prompt, begun = split_begun_turn(prompt)
    return prompt, [text if isinstance(prompt, str) else assistant_turn(begun + text) for text in texts]


def require_whole_turns(prompts: Iterable[str | Messages], policy_trainer: str) -> None:
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
        if begins_turn(prompt):
            raise ValueError(
                f"`prompt_dataset` row {row} ends with an assistant message, but `policy_trainer`={policy_trainer!r} "
                "does not continue a turn. Drop that message, or use PPO, which does."
            )
