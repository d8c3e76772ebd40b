"""The names of arguments in error messages, replaced by the names that the caller's users know."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def replace_arguments(message: str, names: Mapping[str, str]) -> str:
    """
    Replaces the names of arguments in a message.

    Args:
        message (`str`):
            A message with the names of arguments in backticks.
        names (`Mapping[str, str]`):
            Arguments, and the text that stands for each of them, with backticks where it needs some.

    Returns:
        `str`: The message. A text that begins a sentence has an uppercase letter.

    Example:

    ```python
    >>> from trl_rlp.data.argument_names import replace_arguments

    >>> replace_arguments("Lower `threshold`.", {"threshold": "`confidence_threshold` in `reward_args`"})
    'Lower `confidence_threshold` in `reward_args`.'

    ```
    """
    if not names:
        return message

    def replace(match: re.Match[str]) -> str:
        start, argument = match.groups()
        name = names[argument]
        return name if start is None else f"{start}{name[0].upper()}{name[1:]}"

    # In one pass, because the text for one argument may have the name of another one.
    return re.sub(rf"(^|\. )?`({'|'.join(map(re.escape, names))})`", replace, message)


@contextmanager
def rename_arguments(names: Mapping[str, str]) -> Iterator[None]:
    """
    Makes the errors of called functions name settings of the caller, and not arguments that its users cannot pass.

    Args:
        names (`Mapping[str, str]`):
            As in [`replace_arguments`].
    """
    try:
        yield
    except ValueError as error:
        error.args = tuple(replace_arguments(part, names) if isinstance(part, str) else part for part in error.args)
        raise
