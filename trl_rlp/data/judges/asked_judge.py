"""What judges that are asked a question have in common: not every answer says which output is better."""

from abc import ABC, abstractmethod

from transformers.utils import logging

from trl_rlp.data.turns import Messages


logger = logging.get_logger(__name__)

ADVICE = "Use another model or template, let a server's model say more (`max_tokens`), or raise `tolerance`."


class AskedJudge(ABC):
    """
    Counts the answers that name neither of the two outputs, and is an error past a share of them.

    Args:
        tolerance (`float`):
            Share of a call's answers that may be unreadable, in [0, 1].

    Attributes:
        asked (`int`): answers so far, two a pair.
        unreadable (`int`): how many of them name neither A nor B.

    Raises:
        ValueError: if `tolerance` is out of range.
    """

    def __init__(self, tolerance: float):
        if not 0 <= tolerance <= 1:
            raise ValueError(f"`tolerance` is a share of the answers, in [0, 1], got {tolerance}.")
        self.tolerance = tolerance
        self.asked = self.unreadable = 0

    @abstractmethod
    def __call__(self, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        """
        Compares outputs.

        Args:
            prompts (`list`):
                Text or messages.
            firsts (`list[str]`):
                One output a prompt.
            seconds (`list[str]`):
                The other output of each prompt.

        Returns:
            `list[float]`: probabilities in [0, 1] that the first output is better.
        """

    def require_readable(self, tolerance: float) -> None:
        """
        Checks all answers so far.

        Args:
            tolerance (`float`):
                Share of them that may name neither A nor B, in [0, 1].

        Raises:
            ValueError: if more of them do.
        """
        if self.unreadable > tolerance * self.asked:
            raise ValueError(
                f"{self.unreadable} of {self.asked} answers of the judge name neither A nor B alone: more than "
                f"`tolerance`={tolerance}. {ADVICE}"
            )

    def _count(self, unreadable: list[str], asked: int, consequence: str) -> None:
        """Adds a call's answers, the unreadable ones as they are; too many are an error, any a warning."""
        self.asked += asked
        self.unreadable += len(unreadable)
        if not unreadable:
            return
        example = " ".join(unreadable[0].split())[:80]
        message = f"{len(unreadable)} of {asked} answers of the judge name neither A nor B alone, such as {example!r}"
        if len(unreadable) > self.tolerance * asked:
            raise ValueError(f"{message}: more than `tolerance`={self.tolerance}. {ADVICE}")
        logger.warning(f"{message}. {consequence}")
