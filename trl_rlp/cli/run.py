"""The command `trl-rlp run`."""

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
    Datasets of `trl-rlp run`. A dataset is a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`, or a Hub
    name.

    Args:
        preference_dataset (`str`):
            Human preferences D in TRL's preference format.
        prompt_dataset (`str`):
            Prompts U with a column `prompt`. With a column `answers` (known answers), the gate also compares the
            reward models on policy pairs.
        preference_split (`str`, *optional*, defaults to `"train"`):
            Split of `preference_dataset`, if it has splits.
        prompt_split (`str`, *optional*, defaults to `"train"`):
            Split of `prompt_dataset`, if it has splits.
        eval_preference_dataset (`str`, *optional*):
            Human preferences for the gate. By default, a part of D is held out.
        eval_prompt_dataset (`str`, *optional*):
            Prompts to evaluate the policies on. By default, the policies are not evaluated.
    """

    preference_dataset: str = field(metadata={"help": "Human preferences D in TRL's preference format."})
    prompt_dataset: str = field(
        metadata={
            "help": (
                "Prompts U with a column `prompt`. With a column `answers` (known answers), the gate also compares "
                "the reward models on policy pairs."
            )
        }
    )
    preference_split: str = field(
        default="train", metadata={"help": "Split of `preference_dataset`, if it has splits."}
    )
    prompt_split: str = field(default="train", metadata={"help": "Split of `prompt_dataset`, if it has splits."})
    eval_preference_dataset: str | None = field(
        default=None, metadata={"help": "Human preferences for the gate. By default, a part of D is held out."}
    )
    eval_prompt_dataset: str | None = field(
        default=None,
        metadata={"help": "Prompts to evaluate the policies on. By default, the policies are not evaluated."},
    )


def _load_optional(name: str | None) -> Dataset | None:
    return None if name is None else load_rows(name, "test")


def main(options: Sequence[str]) -> None:
    """
    Runs Algorithm 1, and prints the metrics and the folders of the models.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp run`.
    """
    data, config, equivalence = parse(
        "run", "Runs Algorithm 1 of RLP.", options, RunArguments, RLPConfig, EquivalenceArguments
    )
    result = run_rlp(
        config,
        load_rows(data.preference_dataset, data.preference_split),
        load_rows(data.prompt_dataset, data.prompt_split),
        equivalence.build() if config.reward_config().needs_groups else None,
        _load_optional(data.eval_preference_dataset),
        _load_optional(data.eval_prompt_dataset),
    )
    if process_state().is_main_process:
        print_result(result)


def print_result(result: RLPResult) -> None:
    """
    Prints the metrics of a run and the folders of its models.

    Args:
        result ([`RLPResult`]):
            Result of the run.
    """
    console = Console()
    console.print(_build_gate_table(result.stages["gate"]["metrics"]["comparisons"]))
    if "evaluation" in result.stages:
        console.print(_build_policy_table(result.stages["evaluation"]["metrics"]))
    console.print(f"refined reward model: {result.refined_reward_model}", soft_wrap=True)
    console.print(f"retrained policy:     {result.retrained_policy}", soft_wrap=True)


def _build_gate_table(comparisons: dict[str, dict]) -> Table:
    table = Table("pairs", "reward model", "accuracy", "calibration error", "margin", "length baseline")
    for name, comparison in comparisons.items():
        for model in ("before", "after"):
            row = comparison[model]
            cells = [row["accuracy"], row["calibration_error"], row["margin"], row["length_accuracy"]]
            table.add_row(f"{name} ({row['pairs']})", model, *map(_format_metric, cells))
    return table


def _build_policy_table(policies: dict[str, dict[str, float]]) -> Table:
    table = Table("samples on held-out prompts", *policies)
    for name in next(iter(policies.values())):
        table.add_row(name, *(_format_metric(metrics[name]) for metrics in policies.values()))
    return table


def _format_metric(value: float | None) -> str:
    """Formats a metric. Stages store NaN and infinity as `None`, for example the standard error of a single prompt."""
    return "-" if value is None else f"{value:.3f}"
