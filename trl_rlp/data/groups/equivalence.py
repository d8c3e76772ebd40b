"""Which outputs mean the same: what clustering asks for, and the three judges that answer."""

from typing import Protocol

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
    "normalize_text",
]


class Equivalence(Protocol):
    """
    What [`cluster`] needs of a judge. Any object with these three will do; the relation must be symmetric, and equal
    outputs the same, but it need not be transitive.
    """

    @property
    def fingerprint(self) -> str:
        """A text that differs whenever judgements may differ."""

    def normalize(self, text: str) -> str:
        """
        Gives the form under which two texts are the same without asking; empty for an output that says nothing.

        Args:
            text (`str`):
                An output.

        Returns:
            `str`: its form.
        """

    def same(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        """
        Judges many pairs at once, of any prompts.

        Args:
            prompts (`list[str]`):
                Instruction of each pair.
            firsts (`list[str]`):
                One output of each pair.
            seconds (`list[str]`):
                The other output of each pair.

        Returns:
            `list[bool]`: whether the two mean the same.
        """


class ExactMatch:
    """
    Judges that two outputs mean the same when they are equal after [`normalize_text`]. It asks no model, so it suits
    answers of a word or a number; sentences hardly ever match.

    Example:

    ```python
    >>> ExactMatch().same(["2 + 2?", "2 + 2?"], ["Four.", "4"], ["four", "four"])
    [True, False]
    ```
    """

    fingerprint = "exact match after normalize_text"

    def normalize(self, text: str) -> str:
        """
        Gives the form that is compared.

        Args:
            text (`str`):
                An output.

        Returns:
            `str`: [`normalize_text`] of it.
        """
        return normalize_text(text)

    def same(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        """
        Compares pairs of outputs.

        Args:
            prompts (`list[str]`):
                Instruction of each pair; not used.
            firsts (`list[str]`):
                One output of each pair.
            seconds (`list[str]`):
                The other output of each pair.

        Returns:
            `list[bool]`: whether they are equal after normalization.
        """
        return [normalize_text(a) == normalize_text(b) for a, b in zip(firsts, seconds, strict=True)]


EQUIVALENCES = {"nli": NLIEquivalence, "embedding": EmbeddingEquivalence, "exact": ExactMatch}
