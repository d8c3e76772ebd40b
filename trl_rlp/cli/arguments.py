"""Arguments that several commands share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from trl import TrlParser

from trl_rlp.data.groups.equivalence import EQUIVALENCES, EmbeddingEquivalence, ExactMatch, NLIEquivalence


@dataclass
class EquivalenceArguments:
    """
    Which outputs mean the same.

    Args:
        equivalence (`str`, *optional*, defaults to `"nli"`):
            `"nli"` (bidirectional entailment, the paper's), `"embedding"` (cosine similarity) or `"exact"` (equal
            text after normalization).
        equivalence_model (`str`, *optional*, defaults to `"microsoft/deberta-large-mnli"`):
            Folder or Hub name of the NLI classifier or the sentence embedder. Not used by `"exact"`.
        equivalence_rule (`str`, *optional*, defaults to `"strict"`):
            Rule of `"nli"`: `"strict"` (both directions entail) or `"no_contradiction"` (neither contradicts).
        embedding_threshold (`float`, *optional*):
            Cosine similarity from which two outputs mean the same, in [-1, 1]. Required by `"embedding"`: no value is
            right for all texts.
        equivalence_cache (`str`, *optional*):
            File that keeps the NLI model's answers between runs.
    """

    equivalence: str = field(
        default="nli", metadata={"help": "Which outputs mean the same: `nli`, `embedding` or `exact`."}
    )
    equivalence_model: str = field(
        default="microsoft/deberta-large-mnli",
        metadata={"help": "Folder or Hub name of the NLI classifier or the sentence embedder."},
    )
    equivalence_rule: str = field(
        default="strict", metadata={"help": "Rule of `nli`: `strict` or `no_contradiction`."}
    )
    embedding_threshold: float | None = field(
        default=None,
        metadata={"help": "Cosine similarity from which two outputs mean the same. Required by `embedding`."},
    )
    equivalence_cache: str | None = field(
        default=None, metadata={"help": "File that keeps the NLI model's answers between runs."}
    )

    def build(self) -> Any:
        """
        Gives the equivalence that the arguments describe.

        Returns:
            An object as in `trl_rlp.data.groups`.

        Raises:
            ValueError: if the name is unknown or `embedding` has no threshold.
        """
        if self.equivalence not in EQUIVALENCES:
            raise ValueError(f"`equivalence` must be one of {sorted(EQUIVALENCES)}, got {self.equivalence!r}.")
        if self.equivalence == "exact":
            return ExactMatch()
        if self.equivalence == "embedding":
            if self.embedding_threshold is None:
                raise ValueError("`embedding_threshold` is required by `embedding`. Choose it on texts like yours.")
            return EmbeddingEquivalence(self.equivalence_model, threshold=self.embedding_threshold)
        return NLIEquivalence(self.equivalence_model, rule=self.equivalence_rule, cache=self.equivalence_cache)


def parse(command: str, description: str, options: Sequence[str], *dataclass_types: type) -> tuple[Any, ...]:
    """
    Parses flags and a YAML `--config` as TRL's scripts do.

    Args:
        command (`str`):
            Name of the command, for the help.
        description (`str`):
            What it does, for the help.
        options (`Sequence[str]`):
            Words after the command.
        dataclass_types (`type`):
            Dataclasses to fill.

    Returns:
        `tuple`: one instance a dataclass.
    """
    parser = TrlParser(list(dataclass_types), prog=f"trl-rlp {command}", description=description)
    try:
        return parser.parse_args_and_config(args=list(options))
    except yaml.YAMLError as error:
        raise ValueError(f"`--config` is not YAML ({error}). Write `name: value`, one a line.") from error
