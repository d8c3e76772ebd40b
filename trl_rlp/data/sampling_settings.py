"""Valid values of sampling settings, in process and from a server."""

from collections.abc import Callable
from math import isfinite
from typing import Any


# Type, check of the range, and the range in words.
RULES: dict[str, tuple[type | tuple[type, ...], Callable[[Any], bool], str]] = {
    "num_generations": (
        int,
        lambda value: value >= 2,
        "at least 2, because RLP compares completions (the paper uses 10)",
    ),
    "temperature": ((int, float), lambda value: isfinite(value) and value > 0, "above 0 (1.0 samples the policy)"),
    "top_p": ((int, float), lambda value: 0 < value <= 1, "in (0, 1] (1.0 samples the whole distribution)"),
    "top_k": (int, lambda value: value >= 0, "at least 0 (0 samples the whole distribution)"),
    "max_new_tokens": (int, lambda value: value >= 1, "at least 1 token"),
    "max_tokens": (int, lambda value: value >= 1, "at least 1 token"),
    "seed": (int, lambda value: value >= 0, "at least 0"),
    "tokens_per_batch": (int, lambda value: value >= 1, "at least 1 token (try 8192)"),
    "shard_size": (int, lambda value: value >= 1, "at least 1 prompt"),
    "max_concurrency": (int, lambda value: value >= 1, "at least 1 request"),
    "max_retries": (int, lambda value: value >= 0, "at least 0"),
    "timeout": ((int, float), lambda value: isfinite(value) and value > 0, "above 0 seconds (try 600)"),
}


END_SETTINGS = (
    "eos_token_id",
    "forced_eos_token_id",
    "ignore_eos",
    "max_length",
    "max_new_tokens",
    "max_time",
    "max_tokens",
    "min_length",
    "min_new_tokens",
    "min_tokens",
    "stop",
    "stop_strings",
    "stop_token_ids",
    "stopping_criteria",
)
"""Names in `generation_kwargs`, of transformers and vLLM, that decide where a completion ends."""


def require_shared_ends(generation_kwargs: dict[str, Any] | None, sampler: str) -> None:
    """
    Checks that completions end at the same token in training and in sampling, which reads no `generation_kwargs`.

    Args:
        generation_kwargs (`dict`, *optional*):
            The field of the policy's configuration.
        sampler (`str`):
            What samples the policy outside of its training, for the message.

    Raises:
        ValueError: If the mapping sets one of `END_SETTINGS`.
    """
    ends = sorted(set(END_SETTINGS) & set(generation_kwargs or {}))
    if ends:
        raise ValueError(
            f"`generation_kwargs` sets {ends}, which end completions in training only, but {sampler} samples the "
            "policy too. Remove them. `stop_token_id` of PPO and `max_completion_length` reach both."
        )


def require_stop(stop_token_ids: list[int] | None) -> None:
    """
    Checks that completions can finish before the token limit, for methods that prefer finished completions.

    Args:
        stop_token_ids (`list[int]`, *optional*):
            Tokens that end a completion, as in [`sample_completions`].

    Raises:
        ValueError: If the list is empty.
    """
    if stop_token_ids == []:
        raise ValueError(
            '`stop_token`=None lets no completion finish, but SPG prefers finished completions. Leave it at "eos", or '
            "set `stop_token_id`."
        )


def require_settings(**settings: Any) -> None:
    """
    Checks sampling settings by name.

    Args:
        settings:
            Values by name. Each name must be a key of `RULES`.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range.

    Example:

    ```python
    >>> from trl_rlp.data.sampling_settings import require_settings

    >>> require_settings(num_generations=10, temperature=1.0)
    >>> require_settings(top_p=1.5)
    Traceback (most recent call last):
        ...
    ValueError: `top_p` must be in (0, 1] (1.0 samples the whole distribution). Got 1.5.
    ```
    """
    for name, value in settings.items():
        kind, is_in_range, range_text = RULES[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            expected = "an integer" if kind is int else "a number"
            raise TypeError(f"`{name}` must be {expected}, got {value!r}.")
        if not is_in_range(value):
            raise ValueError(f"`{name}` must be {range_text}. Got {value}.")
