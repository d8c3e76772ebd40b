"""The section about the run itself: its stages, their times, and the settings."""

import json
from collections.abc import Mapping
from typing import Any

from trl_rlp.report.elements import Element, Section, Table, Text
from trl_rlp.report.model_sections import list_small_sets
from trl_rlp.report.run_contents import RunContents
from trl_rlp.report.run_stages import STAGES, split_round_name
from trl_rlp.report.training_log import TrainingLog
from trl_rlp.storage.redaction import remove_secrets


def build_run_section(contents: RunContents) -> Section:
    """
    Builds the section about stages, times and settings.

    Args:
        contents ([`RunContents`]):
            What the folder holds.

    Returns:
        [`Section`]: What is missing comes first.
    """
    elements: list[Element] = [Text(text, is_caution=True) for text in contents.missing]
    rows = [
        [name, _describe_stage(name), _round(stage["seconds"]), stage["peak_memory_gib"], _summarize(stage["metrics"])]
        for name, stage in contents.stages.items()
    ]
    elements_of_stages = []
    if rows:
        total = sum(stage["seconds"] or 0 for stage in contents.stages.values())
        rows.append(["all stages", "", _round(total), None, ""])
        elements_of_stages = [
            Table(("stage", "what it does", "seconds", "peak memory, GiB", "result"), rows),
            Text(
                "The seconds are the wall time of the call that finished the stage. Time before an interruption is "
                "not part of them. The memory is that of tensors on an accelerator, so it is unknown on a CPU."
            ),
        ]
        metrics = [
            [name, key, value] for name, stage in contents.stages.items() for key, value in _flatten(stage["metrics"])
        ]
        elements_of_stages.append(Table(("stage", "metric", "value"), metrics, "All metrics of the stages"))
    elements += elements_of_stages
    trainer = contents.logs.get("trainer")
    if trainer is not None:
        elements.append(Text(_describe_time(trainer)))
    elif not rows:
        elements.append(Text("No time was recorded in this folder."))
    for name, settings in contents.settings.items():
        table = [[key, _format_setting(value)] for key, value in remove_secrets(settings).items()]
        elements.append(Table(("setting", "value"), table, f"Settings ({name})"))
    if trainer is not None:
        elements.append(
            Text(
                "The trainer saved its other settings in training_args.bin, which a report does not open: loading it "
                "would run code from the folder."
            )
        )
    return Section("Stages, times and settings", elements)


def _round(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _describe_stage(name: str) -> str:
    base, number = split_round_name(name)
    text = STAGES.get(base, "")
    return f"{text}, round {number}" if text and number > 1 else text


def _summarize(metrics: Mapping[str, Any]) -> str:
    """Returns the few metrics that say what a stage did."""
    parts = []
    for key, text in (
        ("outputs", "{:,} completions"),
        ("finished", "{:.0%} finished"),
        ("step", "{:,} optimizer steps"),
        ("accuracy", "accuracy {:.3f} in the last log"),
        ("reward", "reward {:.3f} in the last log"),
        ("objective/kl", "KL {:.3f} in the last log"),
    ):
        if isinstance(metrics.get(key), int | float):
            parts.append(text.format(metrics[key]))
    accepted = metrics.get("accepted")
    if isinstance(accepted, int):
        others = sum(value for key, value in metrics.items() if key != "accepted" and isinstance(value, int))
        parts.append(f"{accepted:,} pairs of {accepted + others:,} prompts")
    elif isinstance(accepted, float):
        parts.append(f"{accepted:.0%} of the prompts reach γ")
    if "passed" in metrics:
        parts.append("passed" if metrics["passed"] else "warned")
        if list_small_sets(metrics.get("comparisons", {})):
            parts.append("too few pairs to decide")
    return ", ".join(parts)


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [
            pair for key, entry in value.items() for pair in _flatten(entry, f"{prefix} · {key}" if prefix else key)
        ]
    return [(prefix, _format_setting(value) if isinstance(value, list | bool) else value)]


def _format_setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _describe_time(trainer: TrainingLog) -> str:
    seconds = trainer.last("train_runtime")
    if seconds is None:
        trained, planned = (trainer.settings.get(name) for name in ("global_step", "max_steps"))
        if isinstance(trained, int) and isinstance(planned, int) and trained >= planned > 0:
            steps = "The only step was" if planned == 1 else f"All {planned:,} steps were"
            return f"{steps} trained. The time is not in a checkpoint: call `trainer.save_state()` to have it."
        return "The trainer logged no time, so it has not finished its training, or was stopped."
    return f"The last call of `train()` took {seconds:,.0f} s. Time before an interruption is not part of it."
