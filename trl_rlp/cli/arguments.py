"""Arguments that several commands share."""

import argparse
import difflib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NoReturn

from trl import TrlParser

from trl_rlp.cli.config_file import read_config
from trl_rlp.data.groups.equivalence import EmbeddingEquivalence, Equivalence, ExactMatch, NLIEquivalence
from trl_rlp.pipeline_presets import apply_preset
from trl_rlp.storage.paths import expand_fields
from trl_rlp.trainer.field_values import convert_fields


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
        equivalence_instruction (`str`, *optional*, defaults to `"auto"`):
            Text that `nli` puts before both completions: `auto` (the instruction in the prompt, without template and
            examples), `none`, or a column of the prompts or samples (`prompt` is the whole prompt).
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
    equivalence_instruction: str = field(
        default="auto",
        metadata={
            "help": (
                "Text that `nli` puts before both completions: `auto` (the instruction in the prompt, without "
                "template and examples), `none`, or a column of the prompts or samples (`prompt` is the whole prompt)."
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

    def __post_init__(self):
        if self.equivalence not in BUILDERS:
            raise ValueError(f"`equivalence` must be one of {sorted(BUILDERS)}, got {self.equivalence!r}.")

    def deciding(self) -> dict[str, Any]:
        """Returns the settings that decide the result. A cache changes only the time."""
        return {name: value for name, value in vars(self).items() if name != "equivalence_cache"}

    def build(self, dtype: str = "auto") -> Equivalence:
        """
        Builds the equivalence that the arguments describe.

        Args:
            dtype (`str`, *optional*, defaults to `"auto"`):
                Dtype of its model, as in [`NLIEquivalence`].

        Returns:
            An equivalence of `trl_rlp.data.groups`.

        Raises:
            ValueError: If `"embedding"` has no threshold.
        """
        return BUILDERS[self.equivalence](self, dtype)


def _build_nli(arguments: EquivalenceArguments, dtype: str) -> Equivalence:
    return NLIEquivalence(
        arguments.equivalence_model,
        rule=arguments.equivalence_rule,
        instruction=None if arguments.equivalence_instruction == "none" else arguments.equivalence_instruction,
        cache=arguments.equivalence_cache,
        dtype=dtype,
    )


def _build_embedding(arguments: EquivalenceArguments, dtype: str) -> Equivalence:
    if arguments.embedding_threshold is None:
        raise ValueError("`embedding` needs `embedding_threshold`. Choose a value on texts like yours.")
    if not -1 <= arguments.embedding_threshold <= 1:
        raise ValueError(
            f"`embedding_threshold` is a cosine similarity in [-1, 1], got {arguments.embedding_threshold}. Change it."
        )
    return EmbeddingEquivalence(arguments.equivalence_model, threshold=arguments.embedding_threshold, dtype=dtype)


def _build_exact(arguments: EquivalenceArguments, dtype: str) -> Equivalence:
    return ExactMatch()


BUILDERS: dict[str, Callable[[EquivalenceArguments, str], Equivalence]] = {
    "nli": _build_nli,
    "embedding": _build_embedding,
    "exact": _build_exact,
}
"""Builds an equivalence from the arguments and a dtype, with the keys of [`EQUIVALENCES`]."""


class _CommandParser(TrlParser):
    """TRL's parser. It raises its errors, so that the command prints them in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. `{self.prog} --help` lists the options.")

    def refuse(self, word: str, source: str = "") -> NoReturn:
        """Raises an error about an unknown option, or about a word that is not an option."""
        dashes = word[: len(word) - len(word.lstrip("-"))]
        if not dashes and not source:
            raise ValueError(f"`{self.prog}` does not expect {word!r}. Write options as `--name value`.")
        name = word.removeprefix(dashes).split("=")[0]
        known = [entry.name for kind in self.dataclass_types for entry in fields(kind)]
        known += [] if source else ["config", "help"]
        close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
        hint = f"Did you mean `{dashes and '--'}{close[0]}`?" if close else f"`{self.prog} --help` lists the options."
        raise ValueError(f"`{self.prog}` has no option `{dashes}{name}`{source}. {hint}")


def _check_options(prog: str, words: Sequence[str], dataclass_types: Sequence[type]) -> None:
    """Refuses unknown options. The parser itself would first complain about required options that are missing."""
    parser = _CommandParser(list(dataclass_types), prog=prog, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--config")
    required = [
        entry.name
        for kind in dataclass_types
        for entry in fields(kind)
        if entry.init and entry.default is MISSING and entry.default_factory is MISSING
    ]
    parser.set_defaults_with_config(**dict.fromkeys(required))  # an option with a default is not required
    namespace, unknown = parser.parse_known_args(list(words))
    if unknown and not namespace.help:
        parser.refuse(unknown[0])


def parse(command: str, description: str, options: Sequence[str], *dataclass_types: type) -> tuple[Any, ...]:
    """
    Parses command-line options and a YAML file (`--config`) as TRL's scripts do.

    If a dataclass has the field `preset`, the preset has the values of options that are neither written on the command
    line nor in the file. Mappings are merged.

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
        OSError: If the config file cannot be read.
        TypeError, ValueError: If an option is unknown, missing or not valid, or the config file is not YAML.
    """
    prog = f"trl-rlp {command}"
    words = [part for word in options for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    _check_options(prog, words, dataclass_types)
    parser = _CommandParser(list(dataclass_types), prog=prog, description=description)
    words, config = _split_config(words)
    words, config = _add_preset(words, _convert_config(parser, config, dataclass_types), dataclass_types)
    parser.set_defaults_with_config(**config)
    *parsed, unknown = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    if unknown:  # an abbreviation of `--config`
        parser.refuse(unknown[0])
    for arguments in parsed:
        expand_fields(arguments)
    return tuple(parsed)


def _add_preset(
    words: list[str], config: dict[str, Any], dataclass_types: Sequence[type]
) -> tuple[list[str], dict[str, Any]]:
    """Adds the values of the option `preset` to those of the file. Options in the words have no defaults here."""
    names = [entry.name for kind in dataclass_types for entry in fields(kind) if entry.init]
    if "preset" not in names:
        return words, config
    parser = _CommandParser(list(dataclass_types), add_help=False)
    parser.set_defaults_with_config(**dict.fromkeys(names, argparse.SUPPRESS))
    written = vars(parser.parse_known_args(words)[0])
    preset = {**config, **written}.get("preset")
    if preset is None:
        return words, config
    config = apply_preset(preset, {**config, **written})
    # A mapping in the words would replace that of the preset, so the merged one comes after it.
    merged = {name: json.dumps(config[name]) for name in written if isinstance(config[name], dict)}
    return [*words, *(f"--{name}={text}" for name, text in merged.items())], config


def _split_config(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Removes `--config FILE` from the words and reads the file. As in TRL, its `env` sets environment variables."""
    if "--config" not in words:
        return words, {}
    place = words.index("--config")
    words, path = words[:place] + words[place + 2 :], words[place + 1]
    if "--config" in words:
        raise ValueError("`--config` appears twice. Pass one file.")
    config = read_config(path)
    variables = config.pop("env", {})
    if not isinstance(variables, dict):
        kind = type(variables).__name__  # the values may be secret
        raise TypeError(f"`env` in `--config` must be a mapping, got `{kind}`. Write `env:` and `NAME: value`.")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
    return words, config


def _convert_config(parser: _CommandParser, config: dict[str, Any], dataclass_types: Sequence[type]) -> dict[str, Any]:
    """Converts the values of the file. The parser converts text only, so YAML's `seed: 1.5` would stay a float."""
    converted = {}
    for kind in dataclass_types:
        names = {entry.name for entry in fields(kind) if entry.init}
        converted |= convert_fields({name: value for name, value in config.items() if name in names}, kind)
    unknown = [name for name in config if name not in converted]
    if unknown:
        parser.refuse(unknown[0], " (in `--config`)")
    return converted
