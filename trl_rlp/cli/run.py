"""The command `trl-rlp run`."""

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Column, Table

from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.memory_estimate import StageMemory, estimate_memory, format_gib, read_run_shape
from trl_rlp.pipeline import RLPResult, run_rlp
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.pipeline_presets import PRESETS
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.run_folder import RunFolder, round_name


@dataclass
class RunArguments:
    """
    Datasets and preset of `trl-rlp run`. A dataset is a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`,
    or a Hub name.

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
            Human preferences for the gate, with the split `test` if it has splits. By default, a part of D is held
            out.
        eval_prompt_dataset (`str`, *optional*):
            Prompts to evaluate the policies on, with the split `test` if it has splits. By default, the policies are
            not evaluated.
        policy_samples (`str`, *optional*):
            Samples P of the policy with `prompt`, `completions` and `finished`, instead of sampling.
        preset (`str`, *optional*):
            Settings with a name: `paper`, or `anchored` (ours). Other options and those in `--config` take precedence,
            and the keys of mappings are merged.
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
        default=None,
        metadata={
            "help": (
                "Human preferences for the gate, with the split `test` if it has splits. By default, a part of D is "
                "held out."
            )
        },
    )
    eval_prompt_dataset: str | None = field(
        default=None,
        metadata={
            "help": (
                "Prompts to evaluate the policies on, with the split `test` if it has splits. By default, the "
                "policies are not evaluated."
            )
        },
    )
    policy_samples: str | None = field(
        default=None,
        metadata={"help": "Samples P of the policy with `prompt`, `completions` and `finished`, instead of sampling."},
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": (
                "Settings with a name: `paper`, or `anchored` (ours). Other options and those in `--config` take "
                "precedence, and the keys of mappings are merged."
            ),
            "choices": list(PRESETS),
        },
    )


def _load_optional(name: str | None) -> Dataset | None:
    return None if name is None else load_rows(name, "test")


class Forecast:
    """
    The estimated memory of a run. It is printed when the first stage starts, after all checks.

    Args:
        config ([`RLPConfig`]):
            Settings of the run.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U.
        equivalence_model (`str`, *optional*):
            Folder or Hub name of the model that groups completions.
        has_evaluation (`bool`):
            Whether the policies are evaluated at the end.
        has_samples (`bool`):
            Whether the samples of the policy are given, so that their stage loads no model.
    """

    def __init__(
        self,
        config: RLPConfig,
        prompt_dataset: Dataset,
        equivalence_model: str | None,
        has_evaluation: bool,
        has_samples: bool,
    ):
        self._read_shape = functools.partial(read_run_shape, config, prompt_dataset, equivalence_model, has_evaluation)
        self._config = config
        self._has_samples = has_samples
        self._is_printed = False

    @functools.cached_property
    def stages(self) -> dict[str, StageMemory]:
        """Memory by name of the stage, from [`estimate_memory`]."""
        stages = estimate_memory(self._config, self._read_shape())
        return {**stages, "policy_samples": StageMemory()} if self._has_samples else stages

    def print_once(self, run: RunFolder, stage: str, arguments: dict[str, Any]) -> None:
        """Prints the estimate on the main process, when the first stage starts. See [`RunFolder.on_start`]."""
        if process_state().is_main_process and not self._is_printed:
            self._is_printed = True
            Console().print(_build_estimate_table(self.stages))


def main(options: Sequence[str]) -> None:
    """
    Runs Algorithm 1. Prints the estimated memory before, and the metrics and the folders of the models after it.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp run`.
    """
    data, config, equivalence = parse(
        "run", "Runs Algorithm 1 of RLP.", options, RunArguments, RLPConfig, EquivalenceArguments
    )
    preferences = load_rows(data.preference_dataset, data.preference_split)
    prompts = load_rows(data.prompt_dataset, data.prompt_split)
    eval_prompts = _load_optional(data.eval_prompt_dataset)
    needs_equivalence = config.refinement_settings().needs_equivalence
    has_model = needs_equivalence and equivalence.equivalence != "exact"
    forecast = Forecast(
        config,
        prompts,
        equivalence.equivalence_model if has_model else None,
        eval_prompts is not None,
        data.policy_samples is not None,
    )
    with RunFolder.on_start(forecast.print_once):
        result = run_rlp(
            config,
            preferences,
            prompts,
            equivalence.build(config.inference_dtype) if needs_equivalence else None,
            _load_optional(data.eval_preference_dataset),
            eval_prompts,
            data.policy_samples,
        )
    if process_state().is_main_process:
        print_result(result, forecast.stages)


def print_result(result: RLPResult, estimates: Mapping[str, StageMemory]) -> None:
    """
    Prints the metrics of a run, the time and the memory of its stages, the folders of its models, and the command that
    writes its report.

    Args:
        result ([`RLPResult`]):
            Result of the run.
        estimates (`Mapping[str, StageMemory]`):
            Estimated memory by name of the stage.
    """
    console = Console()
    console.print(_build_stage_table(result.stages, estimates))
    for number in range(1, len(result.rounds) + 1):
        name = round_name("gate", number)
        console.print(_build_gate_table(result.stages[name]["metrics"]["comparisons"], name))
    if "evaluation" in result.stages:
        console.print(_build_policy_table(result.stages["evaluation"]["metrics"]))
    # `out`, because `print` would read `[old]` in a path as markup.
    for entry in result.rounds:
        console.out(f"refined reward model: {entry.refined_reward_model}")
        console.out(f"retrained policy:     {entry.retrained_policy}")
    folder = shlex.quote(str(result.reward_model.parent))
    console.out(f"For one HTML file about this run: trl-rlp report {folder}")


def _build_estimate_table(stages: Mapping[str, StageMemory]) -> Table:
    # Without lines between the columns and spaces around them, the table fits into 80 characters.
    columns = ("weights", "gradients", "AdamW", "activations", "sampling", "peak")
    table = Table(Column("GiB by formula", overflow="fold"), *columns, box=None, pad_edge=False)
    for name, memory in stages.items():
        table.add_row(name, *format_gib(memory).values())
    return table


def _build_stage_table(stages: Mapping[str, dict[str, Any]], estimates: Mapping[str, StageMemory]) -> Table:
    table = Table("stage", "seconds", "estimated GiB", "measured peak GiB")
    for name, estimate in estimates.items():
        if name not in stages:
            continue
        peak = stages[name]["peak_memory_gib"]
        measured = "-" if peak is None else f"{peak:.1f}"
        table.add_row(name, f"{stages[name]['seconds']:.0f}", format_gib(estimate)["peak"], measured)
    return table


def _build_gate_table(comparisons: dict[str, dict], name: str) -> Table:
    columns = ("pairs", "reward model", "accuracy", "calibration error", "margin", "length baseline")
    table = Table(*columns, title=name)
    for pairs, comparison in comparisons.items():
        for model in ("before", "after"):
            row = comparison[model]
            cells = [row["accuracy"], row["calibration_error"], row["margin"], row["length_accuracy"]]
            table.add_row(f"{pairs} ({row['pairs']})", model, *map(_format_metric, cells))
    return table


def _build_policy_table(policies: dict[str, dict[str, float]]) -> Table:
    # Names of several rounds differ in their last characters only, so they are not cut.
    table = Table(*(Column(name, overflow="fold") for name in ("samples on held-out prompts", *policies)))
    for name in next(iter(policies.values())):
        table.add_row(name, *(_format_metric(metrics[name]) for metrics in policies.values()))
    return table


def _format_metric(value: float | None) -> str:
    """Formats a metric. Stages store NaN and infinity as `None`, for example the standard error of a single prompt."""
    return "-" if value is None else f"{value:.3f}"
