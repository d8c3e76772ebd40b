"""The base class of judges that ask a model a question. Some answers cannot be read."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers.utils import logging

from trl_rlp.data.judges.answer_cache import AnswerCache
from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import prompt_text


logger = logging.get_logger(__name__)

ADVICE = "Use another model or template, allow a server's model longer answers (`max_tokens`), or raise `tolerance`."
PAIRS_NAMED = 10
MIN_ANSWERS = 100
"""Number of answers from which on the share of unreadable ones counts, if a call is only a part."""


def require_tolerance(tolerance: float) -> None:
    """
    Checks a maximum share of unreadable answers.

    Args:
        tolerance (`float`):
            The share.

    Raises:
        ValueError: If it is not in [0, 1].
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"`tolerance` is a share of the answers, in [0, 1], got {tolerance}. Change it, or omit it.")


class AskedJudge(ABC):
    """
    Keeps answers, and counts unreadable ones: those that name neither of the two completions. Too many are an error.

    Args:
        tolerance (`float`):
            Maximum share of unreadable answers in one call, in [0, 1]. Calls that are parts of one, as in a run with
            several shards, count together, from [`MIN_ANSWERS`] on.
        cache (`str` or `os.PathLike`, *optional*):
            File that stores the answers, see [`AnswerCache`].

    Attributes:
        asked (`int`): Number of answers so far, two per pair.
        unreadable (`int`): Number of answers so far that name neither A nor B. Answers that were cut are among them.
        cut (`int`): Number of answers so far that were cut by the token limit.
        refused (`int`): Number of pairs so far that the judge could not read, for example because they are too long.

    Raises:
        ValueError: If `tolerance` is out of range, or `cache` is not a file of answers.
    """

    def __init__(self, tolerance: float, cache: str | os.PathLike | None = None):
        require_tolerance(tolerance)
        self.tolerance = tolerance
        self.asked = self.unreadable = self.cut = self.refused = 0
        self._start: tuple[int, int] | None = None  # `asked` and `unreadable` before the first part
        self._cache = AnswerCache(cache)

    @abstractmethod
    def __call__(self, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float | None]:
        """
        Compares pairs of completions.

        Args:
            prompts (`list`):
                Text or messages.
            firsts (`list[str]`):
                First completion of each prompt.
            seconds (`list[str]`):
                Second completion of each prompt.

        Returns:
            `list[float]`: Probabilities in [0, 1] that the first completion is better. `None` for a pair that the
            judge could not read.
        """

    @contextmanager
    def in_parts(self) -> Iterator[None]:
        """
        Makes the calls inside a `with` block parts of one. So the last part, which may be small, and a part that holds
        nothing but long pairs are no error.
        """
        self._start = self.asked, self.unreadable
        try:
            yield
        finally:
            self._start = None

    def require_readable(self, tolerance: float) -> None:
        """
        Checks the share of unreadable answers among all answers so far.

        Args:
            tolerance (`float`):
                Maximum share of answers that name neither A nor B, in [0, 1].

        Raises:
            ValueError: If the share is larger.
        """
        if self.unreadable > tolerance * self.asked:
            raise ValueError(
                f"{self.unreadable} of {self.asked} answers of the judge name neither A nor B alone: more than "
                f"`tolerance`={tolerance}. {ADVICE}"
            )

    def _count_answers(self, unreadable: list[str], asked: int, consequence: str, cut: int = 0) -> None:
        """
        Adds the answers of one call to the counts.

        Unreadable answers raise an error if their share exceeds the tolerance, and a warning otherwise. In a part, it
        is the share of the answers of all parts so far.

        Args:
            unreadable (`list[str]`):
                The unreadable answers.
            asked (`int`):
                Number of answers.
            consequence (`str`):
                What happens to pairs with unreadable answers, for the warning.
            cut (`int`, *optional*, defaults to `0`):
                Number of unreadable answers that were cut by the token limit.
        """
        self.asked += asked
        self.cut += cut
        self.unreadable += len(unreadable)
        if not unreadable:
            return
        example = " ".join(unreadable[0].split())[:80]
        message = f"{len(unreadable)} of {asked} answers of the judge name neither A nor B alone"
        message += (f" ({cut} were cut by the token limit)" if cut else "") + f", such as {example!r}"
        share_asked, share_unreadable = asked, len(unreadable)
        if self._start is not None:
            share_asked, share_unreadable = self.asked - self._start[0], self.unreadable - self._start[1]
            message += f", and {share_unreadable} of {share_asked} so far"
        is_enough = self._start is None or share_asked >= MIN_ANSWERS
        if is_enough and share_unreadable > self.tolerance * share_asked:
            raise ValueError(f"{message}: more than `tolerance`={self.tolerance}. {ADVICE}")
        logger.warning(f"{message}. {consequence}")

    def _count_refused(self, reasons: dict[int, str], prompts: Sequence[str | Messages]) -> None:
        """
        Counts the pairs that the judge could not read, and names them in a warning.

        Args:
            reasons (`dict[int, str]`):
                Why the judge could not read a pair, by the number of the pair.
            prompts (`Sequence`):
                Prompt of each pair.

        Raises:
            ValueError: If the judge could read no pair of this call, has not answered before, and the call is not a
                part.
        """
        self.refused += len(reasons)
        if not reasons:
            return
        first = next(iter(reasons.values()))
        if len(reasons) == len(prompts) and not self.asked and self._start is None:
            raise ValueError(f"The judge could read none of {len(prompts)} pairs. The reason for pair 0: {first}")
        names = [f"{pair} ({prompt_text(prompts[pair])[:40]!r})" for pair in list(reasons)[:PAIRS_NAMED]]
        more = ", ..." if len(reasons) > PAIRS_NAMED else ""
        logger.warning(
            f"The judge could not read {len(reasons)} of {len(prompts)} pairs. They are left out: pair "
            f"{', '.join(names)}{more}. The reason for pair {next(iter(reasons))}: {first}"
        )
