"""`trl-rlp run`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from rich.console import Console
from rich.table import Table

from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.pipeline import RLPResult, run_rlp
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.processes import process_state


@dataclass
class RunArguments:
    """
    Data sets of `trl-rlp run`; each is a JSON-lines file, a folder of `save_to_disk`, or a Hub name.

    Args:
        preference_dataset (`str`):
            D: human preferences in TRL's format.
        prompt_dataset (`str`):
            U: instructions, a column `prompt`; an optional column `answers` labels policy pairs for the gate.
        preference_split (`str`, *optional*, defaults to `"train"`), prompt_split (`str`, *optional*, defaults to
        `"train"`):
            Splits of Hub data sets.
        eval_preference_dataset (`str`, *optional*):
            Human preferences for the gate. Held out from D if `None`.
        eval_prompt_dataset (`str`, *optional*):
            Prompts to compare the policies on. They are not compared if `None`.
    """

    preference_dataset: str = field(metadata={"help": "D: human preferences in TRL's format."})
    prompt_dataset: str = field(metadata={"help": "U: instructions, a column `prompt`."})
    preference_split: str = field(default="train", metadata={"help": "Split of a Hub preference data set."})
    prompt_split: str = field(default="train", metadata={"help": "Split of a Hub prompt data set."})
    eval_preference_dataset: str | None = field(
        default=None, metadata={"help": "Human preferences for the gate. Held out from D if not given."}
    )
    eval_prompt_dataset: str | None = field(
        default=None, metadata={"help": "Prompts to compare the policies on. Not compared if not given."}
    )


def _optional(name: str | None) -> Dataset | None:
    return None if name is None else load_rows(name, "test")


def main(options: Sequence[str]) -> None:
    """
    Runs Algorithm 1 and prints where everything is.

    Args:
        options (`Sequence[str]`):
            Words after `trl-rlp run`.
    """
    data, config, equivalence = parse(
        "run", "Runs Algorithm 1 of RLP.", options, RunArguments, RLPConfig, EquivalenceArguments
    )
    result = run_rlp(
        config,
        load_rows(data.preference_dataset, data.preference_split),
        load_rows(data.prompt_dataset, data.prompt_split),
        equivalence.build() if config.needs_groups() else None,
        _optional(data.eval_preference_dataset),
        _optional(data.eval_prompt_dataset),
    )
    if process_state().is_main_process:
        show(result)


def show(result: RLPResult) -> None:
    """
    Prints the figures of a run.

    Args:
        result ([`RLPResult`]):
            The run.
    """
    console = Console()
    gate = result.stages["gate"]["figures"]
    table = Table("pairs", "reward model", "accuracy", "calibration error", "margin", "longer is better")
    for name, figures in gate["figures"].items():
        for model in ("before", "after"):
            row = figures[model]
            cells = [row["accuracy"], row["calibration_error"], row["margin"], row["length_accuracy"]]
            table.add_row(f"{name} ({row['pairs']})", model, *(f"{cell:.3f}" for cell in cells))
    console.print(table)
    if "evaluation" in result.stages:
        policies = result.stages["evaluation"]["figures"]
        table = Table("outputs on held-out prompts", *policies)
        for figure in next(iter(policies.values())):
            table.add_row(figure, *(f"{figures[figure]:.3f}" for figures in policies.values()))
        console.print(table)
    console.print(f"refined reward model: {result.refined_reward_model}", soft_wrap=True)
    console.print(f"retrained policy:     {result.retrained_policy}", soft_wrap=True)
