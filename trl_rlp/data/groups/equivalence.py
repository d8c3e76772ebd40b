"""The equivalences: objects that decide whether two completions mean the same."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from trl_rlp.data.groups.embedding import EmbeddingEquivalence
from trl_rlp.data.groups.nli import RULES, NLIEquivalence
from trl_rlp.data.normalization import normalize_text


__all__ = [
    "EQUIVALENCES",
    "RULES",
    "EmbeddingEquivalence",
    "Equivalence",
    "ExactMatch",
    "NLIEquivalence",
    "ask_equivalence",
    "normalize_text",
    "release_after",
    "require_equivalence",
]


class Equivalence(Protocol):
    """
    Protocol of the equivalences that [`cluster`] accepts.

    Any object with these three members works. The relation must be symmetric, and equal completions must be
    equivalent. It need not be transitive. An object may also have the attribute `instruction` of [`NLIEquivalence`].
    Without it, it gets whole prompts. An object with a model may have a method `release`, which releases the model
    until it is needed again, see [`release_after`].
    """

    @property
    def fingerprint(self) -> str:
        """A text that differs whenever verdicts may differ."""

    def normalize(self, text: str) -> str:
        """
        Normalizes a completion. Completions that are equal after that mean the same, without a call of
        [`are_equivalent`].

        Args:
            text (`str`):
                A completion.

        Returns:
            `str`: The normalized text. It is empty for a completion that says nothing.
        """

    def are_equivalent(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        """
        Checks which pairs of completions mean the same. One call may hold pairs of many prompts.

        Args:
            prompts (`list[str]`):
                Prompt of each pair as plain text, or the part of it that `instruction` selects.
            firsts (`list[str]`):
                First completion of each pair.
            seconds (`list[str]`):
                Second completion of each pair.

        Returns:
            `list[bool]`: One per pair, whether the two mean the same.
        """


def require_equivalence(equivalence: Any) -> None:
    """
    Checks that an object is an equivalence.

    Args:
        equivalence:
            The user's object.

    Raises:
        TypeError: If it is a name or a class, or lacks a member of [`Equivalence`].
    """
    remedy = "Pass an object, for example `ExactMatch()` or `NLIEquivalence()`."
    if isinstance(equivalence, str):
        raise TypeError(f"`equivalence` must be an object, got {equivalence!r}. {remedy}")
    if isinstance(equivalence, type):
        raise TypeError(f"`equivalence` must be an object, got the class `{equivalence.__name__}`. {remedy}")
    members = ("fingerprint", "normalize", "are_equivalent")
    # Read statically, because a fingerprint may hash a whole model.
    missing = [name for name in members if inspect.getattr_static(equivalence, name, None) is None]
    if missing:
        raise TypeError(f"`equivalence` is a `{type(equivalence).__name__}`, which lacks {missing}. {remedy}")


def ask_equivalence(equivalence: Equivalence, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
    """
    Calls [`~Equivalence.are_equivalent`], and checks its verdicts.

    Args:
        equivalence ([`Equivalence`]):
            The equivalence.
        prompts, firsts, seconds (`list[str]`):
            As in [`~Equivalence.are_equivalent`].

    Returns:
        `list[bool]`: Plain booleans, also if the equivalence returns those of NumPy, or 0 and 1.

    Raises:
        ValueError: If there is not one verdict for each pair.
    """
    verdicts = list(map(bool, equivalence.are_equivalent(prompts, firsts, seconds)))
    if len(verdicts) != len(firsts):
        raise ValueError(
            f"`are_equivalent` of `{type(equivalence).__name__}` returned {len(verdicts)} verdicts for {len(firsts)} "
            "pairs. It must return one boolean for each pair."
        )
    return verdicts


@contextmanager
def release_after(equivalence: Any) -> Iterator[None]:
    """
    Releases the model of an equivalence after a `with` block, also when the block fails.

    Args:
        equivalence ([`Equivalence`]):
            The equivalence. One without a method `release` is left as it is.
    """
    try:
        yield
    finally:
        if hasattr(equivalence, "release"):
            equivalence.release()


class ExactMatch:
    """
    Treats two completions as the same when they are equal after [`normalize_text`].

    It uses no model. It suits answers of one word or one number in one spelling: case counts. Sentences hardly ever
    match.

    Example:

    ```python
    >>> ExactMatch().are_equivalent(["2 + 2?", "2 + 2?"], ["four.", "4"], ["four", "four"])
    [True, False]
    ```
    """

    fingerprint = "exact match after normalize_text"

    def normalize(self, text: str) -> str:
        """
        Normalizes a completion before the comparison.

        Args:
            text (`str`):
                A completion.

        Returns:
            `str`: The text after [`normalize_text`].
        """
        return normalize_text(text)

    def are_equivalent(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        """
        Compares pairs of completions.

        Args:
            prompts (`list[str]`):
                Prompt of each pair. Not used.
            firsts (`list[str]`):
                First completion of each pair.
            seconds (`list[str]`):
                Second completion of each pair.

        Returns:
            `list[bool]`: One per pair, whether the two are equal after normalization.
        """
        return [normalize_text(a) == normalize_text(b) for a, b in zip(firsts, seconds, strict=True)]


EQUIVALENCES = {"nli": NLIEquivalence, "embedding": EmbeddingEquivalence, "exact": ExactMatch}
"""Equivalences by the name that the command line has for them."""
