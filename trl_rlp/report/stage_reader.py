"""Reads the stages of a run of Algorithm 1, and finds those that are missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_rlp.data.preferences.labeling import ROW_NUMBER
from trl_rlp.report.rows import MAKE_AGAIN, Rows, explain_damage, read_object, read_stage_rows
from trl_rlp.report.run_contents import Round, RunContents
from trl_rlp.report.run_stages import PARTIAL, get_stage_order, list_expected_stages, split_round_name
from trl_rlp.report.shapes import STAGE_METRICS, AnswersRow, PreferenceRow, SampleRow, Settings, Stage, require_shape
from trl_rlp.report.training_log import read_training_log
from trl_rlp.storage.run_folder import MANIFEST, RESULT, round_name


RLP_FOLDER = "rlp"
"""Folder of Algorithm 1 in the `output_dir` of [`RLPPPOTrainer`]."""

REWARDS = "rewards.json"
"""Rewards of the completions of an evaluated policy."""

_ROUND_SHAPES = {
    "policy_samples": SampleRow,
    "groups": SampleRow,
    "synthetic_preferences": PreferenceRow,
    "gate": AnswersRow,
}
"""Stages of a round whose datasets are read, and the shapes of their rows."""


def read_stages(contents: RunContents, root: Path) -> None:
    """
    Reads the settings and the stages of a run.

    Args:
        contents ([`RunContents`]):
            Gets what is found.
        root (`Path`):
            Folder with the manifest of the run: that of the contents, or the one of Algorithm 1 in it.

    Raises:
        ValueError: If a file is damaged.
    """
    manifest = (root / MANIFEST).relative_to(contents.folder).as_posix()
    remedy = "Without its settings, the run cannot be resumed. Start it again."
    contents.settings[manifest] = read_object(root / MANIFEST, Settings, remedy)
    found = {file.parent.name: _read_stage(file) for file in root.glob(f"*/{RESULT}")}
    for name in sorted(found, key=get_stage_order):
        contents.stages[name] = found[name]
    for folder in sorted(root.iterdir(), key=lambda entry: get_stage_order(entry.name)):
        is_stage = folder.is_dir() and folder.name.removesuffix(PARTIAL) in found or folder.name.endswith(PARTIAL)
        log = read_training_log(folder) if is_stage else None
        if log is not None:
            contents.logs[folder.name.replace(PARTIAL, " (unfinished)")] = log
    contents.rounds += _read_rounds(root, contents.stages)
    _read_policies(contents, root)


def _read_stage(file: Path) -> dict[str, Any]:
    """Reads the result of a stage."""
    stage = {"metrics": {}, "seconds": None, "peak_memory_gib": None, **read_object(file, Stage, MAKE_AGAIN)}
    shape = STAGE_METRICS.get(split_round_name(file.parent.name)[0], Any)
    explain_damage(file, MAKE_AGAIN, lambda: require_shape(stage["metrics"], shape, "metrics"))
    return stage


def _read_rounds(root: Path, stages: dict[str, dict[str, Any]]) -> Iterator[Round]:
    number = 1
    while True:
        names = {name: round_name(name, number) for name in _ROUND_SHAPES}
        read = {name: read_stage_rows(root / folder, _ROUND_SHAPES[name]) for name, folder in names.items()}
        prompts, pairs, gate = read["groups"] or read["policy_samples"], read["synthetic_preferences"], read["gate"]
        if prompts is None:
            return
        metrics = {name: stages.get(folder, {}).get("metrics", {}) for name, folder in names.items()}
        counts = {name: count for name, count in metrics["synthetic_preferences"].items() if name != "accepted"}
        answers = gate.column("answers") if gate is not None and "answers" in gate.names else None
        if gate is not None and answers is not None and len(answers) != len(prompts):
            raise gate.describe_damage(f"{len(answers)} known answers for {len(prompts)} prompts")
        if pairs is not None and ROW_NUMBER in pairs.names:
            last = max((row for row in pairs.column(ROW_NUMBER) if row is not None), default=-1)
            if last >= len(prompts):
                raise pairs.describe_damage(f"a pair of the prompt {last}, but there are {len(prompts)} prompts")
        yield Round(number, prompts, pairs, answers, counts, metrics["groups"].get("threshold"))
        number += 1


def _read_policies(contents: RunContents, root: Path) -> None:
    for stage in ("evaluation", "outcome"):
        policies = {path.name: path for path in (root / stage).glob("*") if path.is_dir()}
        for name in sorted(policies, key=lambda name: (name != "sft", *get_stage_order(name))):
            rows = read_stage_rows(policies[name], SampleRow)
            if rows is not None and {"prompt", "completions"} <= rows.names:
                contents.policies[name] = rows
                file = policies[name] / REWARDS
                if file.is_file():
                    contents.rewards[name] = _read_rewards(file, rows)


def _read_rewards(file: Path, policy: Rows) -> dict[str, list[list[float]]]:
    """Reads the rewards of a policy's completions."""
    rewards = read_object(file, dict[str, list[list[float]]], MAKE_AGAIN)
    sizes = [len(completions) for completions in policy.column("completions")]
    explain_damage(file, MAKE_AGAIN, lambda: _require_sizes(rewards, sizes))
    return rewards


def _require_sizes(rewards: dict[str, list[list[float]]], sizes: list[int]) -> None:
    """Checks that each completion has a reward."""
    for name, values in rewards.items():
        if [len(row) for row in values] != sizes:
            raise ValueError(f"`{name}` does not have one reward for each completion")


def find_missing_stages(roots: list[Path], contents: RunContents) -> list[str]:
    """
    Finds the stages that the settings ask for and that have not finished.

    Args:
        roots (`list[Path]`):
            Folders that [`read_stages`] read.
        contents ([`RunContents`]):
            What was found in them.

    Returns:
        `list[str]`: Sentences about them.
    """
    settings = [contents.settings[(root / MANIFEST).relative_to(contents.folder).as_posix()] for root in roots]
    expected = {name for values in settings for name in list_expected_stages(values)}
    missing = sorted(expected - contents.stages.keys(), key=get_stage_order)
    sentences = []
    if missing:
        started = [name for name in missing if any((root / f"{name}{PARTIAL}").is_dir() for root in roots)]
        text = f"The run has not finished. These stages are missing: {', '.join(missing)}."
        if started:
            text += f" Of these, {', '.join(started)} has started."
        sentences.append(f"{text} The same command goes on after the last finished stage.")
    is_trainer = "args.rlp_method" in contents.settings.get(f"{RLP_FOLDER}/{MANIFEST}", {})
    if is_trainer and "trainer" not in contents.logs:
        sentences.append(
            "The log of step 5, the training of π̂ by the trainer itself, is missing. The training has not started, or "
            "it ended before its first checkpoint and without `trainer.save_state()`."
        )
    return sentences
