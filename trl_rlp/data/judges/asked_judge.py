"""The base class of judges that ask a model a question. Some answers cannot be read."""

from abc import ABC, abstractmethod

from transformers.utils import logging

from trl_rlp.data.turns import Messages


logger = logging.get_logger(__name__)

ADVICE = "Use another model or template, allow a server's model longer answers (`max_tokens`), or raise `tolerance`."


class AskedJudge(ABC):
    """
    Counts unreadable answers: those that name neither of the two completions. Too many are an error.

    Args:
        tolerance (`float`):
            Maximum share of unreadable answers in one call, in [0, 1].

    Attributes:
        asked (`int`): Number of answers so far, two per pair.
        unreadable (`int`): Number of answers so far that name neither A nor B.

    Raises:
        ValueError: If `tolerance` is out of range.
    """

    def __init__(self, tolerance: float):
        if not 0 <= tolerance <= 1:
            raise ValueError(f"`tolerance` is a share of the answers, in [0, 1], got {tolerance}.")
        self.tolerance = tolerance
        self.asked = self.unreadable = 0

    @abstractmethod
    def __call__(self, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
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
            `list[float]`: Probabilities in [0, 1] that the first completion is better.
        """

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

    def _count_answers(self, unreadable: list[str], asked: int, consequence: str) -> None:
        """
        Adds the answers of one call to the counts.

        Unreadable answers raise an error if their share exceeds the tolerance, and a warning otherwise.

        Args:
            unreadable (`list[str]`):
                The unreadable answers.
            asked (`int`):
                Number of answers.
            consequence (`str`):
                What happens to pairs with unreadable answers, for the warning.
        """
        self.asked += asked
        self.unreadable += len(unreadable)
        if not unreadable:
            return
        example = " ".join(unreadable[0].split())[:80]
        message = f"{len(unreadable)} of {asked} answers of the judge name neither A nor B alone, such as {example!r}"
        if len(unreadable) > self.tolerance * asked:
            raise ValueError(f"{message}: more than `tolerance`={self.tolerance}. {ADVICE}")
        logger.warning(f"{message}. {consequence}")
