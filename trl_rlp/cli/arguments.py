"""Arguments that several commands share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from trl import TrlParser

from trl_rlp.data.groups.equivalence import EmbeddingEquivalence, Equivalence, ExactMatch, NLIEquivalence


@dataclass
class EquivalenceArguments:
    """
    Arguments that define which completions have the same meaning.

    Args:
        equivalence (`str`, *optional*, defaults to `"nli"`):
            Which completions have the same meaning: `nli` (bidirectional entailment, as in the paper), `embedding`
            (cosine similarity) or `exact` (equal text after normalization).
        equivalence_model (`str`, *optional*, defaults to `"microsoft/deberta-large-mnli"`):
            Folder or Hub name of the NLI classifier or the sentence embedding model. Ignored by `exact`.
        equivalence_rule (`str`, *optional*, defaults to `"strict"`):
            Rule of `nli`: `strict` (both directions are entailment) or `no_contradiction` (no direction is a
            contradiction).
        embedding_threshold (`float`, *optional*):
            Minimum cosine similarity of completions with the same meaning, in [-1, 1]. Required by `embedding`. It has
            no default, because no value works for all texts.
        equivalence_cache (`str`, *optional*):
            File that keeps the labels of the NLI model between runs.
    """

    equivalence: str = field(
        default="nli",
        metadata={
            "help": (
                "Which completions have the same meaning: `nli` (bidirectional entailment, as in the paper), "
                "`embedding` (cosine similarity) or `exact` (equal text after normalization)."
            )
        },
    )
    equivalence_model: str = field(
        default="microsoft/deberta-large-mnli",
        metadata={
            "help": "Folder or Hub name of the NLI classifier or the sentence embedding model. Ignored by `exact`."
        },
    )
    equivalence_rule: str = field(
        default="strict",
        metadata={
            "help": (
                "Rule of `nli`: `strict` (both directions are entailment) or `no_contradiction` (no direction is a "
                "contradiction)."
            )
        },
    )
    embedding_threshold: float | None = field(
        default=None,
        metadata={
            "help": (
                "Minimum cosine similarity of completions with the same meaning, in [-1, 1]. Required by `embedding`. "
                "It has no default, because no value works for all texts."
            )
        },
    )
    equivalence_cache: str | None = field(
        default=None, metadata={"help": "File that keeps the labels of the NLI model between runs."}
    )

    def build(self) -> Equivalence:
        """
        Builds the equivalence that the arguments describe.

        Returns:
            An equivalence of `trl_rlp.data.groups`.

        Raises:
            ValueError: If the name is unknown, or `"embedding"` has no threshold.
        """
        if self.equivalence not in BUILDERS:
            raise ValueError(f"`equivalence` must be one of {sorted(BUILDERS)}, got {self.equivalence!r}.")
        return BUILDERS[self.equivalence](self)


def _build_nli(arguments: EquivalenceArguments) -> Equivalence:
    return NLIEquivalence(
        arguments.equivalence_model, rule=arguments.equivalence_rule, cache=arguments.equivalence_cache
    )


def _build_embedding(arguments: EquivalenceArguments) -> Equivalence:
    if arguments.embedding_threshold is None:
        raise ValueError("`embedding` needs `embedding_threshold`. Choose a value on texts like yours.")
    return EmbeddingEquivalence(arguments.equivalence_model, threshold=arguments.embedding_threshold)


def _build_exact(arguments: EquivalenceArguments) -> Equivalence:
    return ExactMatch()


BUILDERS: dict[str, Callable[[EquivalenceArguments], Equivalence]] = {
    "nli": _build_nli,
    "embedding": _build_embedding,
    "exact": _build_exact,
}
"""Builds an equivalence from the arguments, with the keys of [`EQUIVALENCES`]."""


def parse(command: str, description: str, options: Sequence[str], *dataclass_types: type) -> tuple[Any, ...]:
    """
    Parses command-line options and a YAML file (`--config`) as TRL's scripts do.

    Args:
        command (`str`):
            Name of the command, for the help text.
        description (`str`):
            What the command does, for the help text.
        options (`Sequence[str]`):
            Command-line arguments after the command.
        dataclass_types (`type`):
            Dataclasses to fill.

    Returns:
        `tuple`: One instance per dataclass.

    Raises:
        ValueError: If the config file is not YAML, or has an unknown key.
    """
    parser = TrlParser(list(dataclass_types), prog=f"trl-rlp {command}", description=description)
    try:
        return parser.parse_args_and_config(args=list(options))
    except yaml.YAMLError as error:
        raise ValueError(f"`--config` is not YAML ({error}). Write `name: value`, one per line.") from error
