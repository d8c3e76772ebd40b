"""What the folder of a run holds, and what it lacks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_rlp.data.groups.clustering import has_groups
from trl_rlp.data.preferences.labeling import ROW_NUMBER
from trl_rlp.evaluation.alpaca_eval import read_annotations
from trl_rlp.evaluation.collected_metrics import METRICS_FILE
from trl_rlp.evaluation.judged_outputs import ANNOTATION_FILES, ANSWERS_FILE
from trl_rlp.report.rows import (
    MAKE_AGAIN,
    Rows,
    explain_damage,
    read_file_rows,
    read_object,
    read_parquet,
    read_shards,
    read_stage_rows,
)
from trl_rlp.report.shapes import (
    STAGE_METRICS,
    AnchorRow,
    AnnotationRow,
    AnswersRow,
    Evaluation,
    LoggedRow,
    PreferenceRow,
    SampledRow,
    SampleRow,
    Settings,
    Stage,
    require_shape,
)
from trl_rlp.report.training_log import TrainingLog, read_training_log
from trl_rlp.storage.json_files import read_json
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.run_folder import MANIFEST, RESULT, SHARDS, round_name


RLP_FOLDER = "rlp"
REWARDS = "rewards.json"
STAGES = {
    "sft": "π_SFT by fine-tuning on demonstrations",
    "preferences": "simulated human preferences D",
    "initial_policy": "π_SFT, the policy that the trainer was given",
    "anchor_samples": "samples of π_SFT for anchors",
    "anchors": "anchors: clear majorities of π_SFT",
    "reward_model": "step 2: reward model r on D",
    "policy": "step 3: policy π against r",
    "policy_samples": "step 4: samples P of the policy",
    "groups": "step 4: groups of equal meaning",
    "synthetic_preferences": "step 4: synthetic preferences D̂",
    "refined_reward_model": "step 4: refined reward model r̂",
    "gate": "step 4: gate, r̂ against r",
    "retrained_policy": "step 5: policy π̂ against r̂",
    "evaluation": "evaluation of the policies",
    "outcome": "evaluation of policies and reward models",
}
"""What each stage does, in the order of the stages. Further rounds add a number to the name."""

_WHAT_TO_PASS = (
    "Pass the output folder of `trl-rlp run`, `sample`, `prefer`, `anchors`, `evaluate` or `quickstart`, or the "
    "`output_dir` of a trainer."
)
_EVALUATE_AGAIN = "Run `trl-rlp evaluate` again, with another `output_dir`."
_GROUP_COLUMNS = {"cluster_ids", "confidence", "confidence_upper"}
_PARTIAL = ".partial"
_REFINEMENT = "_refinement"
_ROUND_SHAPES = {
    "policy_samples": SampleRow,
    "groups": SampleRow,
    "synthetic_preferences": PreferenceRow,
    "gate": AnswersRow,
}
"""Stages of a round whose datasets are read, and the shapes of their rows."""


@dataclass
class Round:
    """
    The data of one round of step 4, or those of a command.

    Args:
        number (`int`):
            Number of the round, from 1.
        prompts ([`Rows`], *optional*):
            Prompts with their completions, and with groups if they were grouped.
        pairs ([`Rows`], *optional*):
            Synthetic preferences. Shards also have a row for each prompt without a pair, with its `reason` only.
        answers (`list`, *optional*):
            Known answers of each prompt.
        counts (`dict[str, int]`):
            Number of prompts without a pair, by reason.
        threshold (`float`, *optional*):
            Threshold γ.
    """

    number: int = 1
    prompts: Rows | None = None
    pairs: Rows | None = None
    answers: list[Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    threshold: float | None = None


@dataclass
class RunContents:
    """
    What a folder holds.

    Args:
        folder (`Path`):
            The folder.
        settings (`dict[str, dict]`):
            Settings by the name of their file.
        stages (`dict[str, dict]`):
            `metrics`, `seconds` and `peak_memory_gib` of each finished stage, in their order.
        logs (`dict[str, TrainingLog]`):
            Log of each training, by the name of its stage. That of the folder's own trainer is called "trainer".
        rounds (`list[Round]`):
            Samples and preferences.
        anchors ([`Rows`], *optional*):
            Anchors of the command `trl-rlp anchors`.
        policies (`dict[str, Rows]`):
            Samples of each evaluated policy on the same prompts.
        rewards (`dict[str, dict[str, list]]`):
            Rewards of these samples, by policy and by reward model.
        completions ([`Rows`], *optional*):
            Completions that the folder's own trainer logged.
        evaluation (`dict`):
            Metrics of the command `trl-rlp evaluate`.
        annotations (`dict[str, Rows]`):
            Annotations of its judge, by the argument that has the judged outputs.
        missing (`list[str]`):
            Sentences about what the folder lacks.
    """

    folder: Path
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, TrainingLog] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    anchors: Rows | None = None
    policies: dict[str, Rows] = field(default_factory=dict)
    rewards: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    completions: Rows | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, Rows] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def read_contents(folder: str | Path) -> RunContents:
    """
    Reads what the folder of a run holds.

    Args:
        folder (`str` or `Path`):
            Output folder of a command or of a trainer.

    Returns:
        [`RunContents`]: Everything that a report can show.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is empty, holds no run, or a file in it is damaged.
    """
    path = Path(expand_path(folder))
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'. {_WHAT_TO_PASS}")
    if not any(path.iterdir()):
        raise ValueError(f"The folder '{folder}' is empty. {_WHAT_TO_PASS}")
    contents = RunContents(path)
    roots = [root for root in (path, path / RLP_FOLDER) if (root / MANIFEST).is_file()]
    for root in roots:
        _read_stages(contents, root)
    _read_trainer(contents)
    _read_command(contents)
    contents.missing += _find_missing_stages(roots, contents)
    _read_evaluation(contents)
    if not _has_parts(contents):
        raise ValueError(_explain_foreign(path))
    return contents


def _has_parts(contents: RunContents) -> bool:
    """Checks whether there is anything to report."""
    found = (contents.stages, contents.logs, contents.rounds, contents.anchors, contents.evaluation, contents.missing)
    return any(part is not None and len(part) for part in found)


def _explain_foreign(path: Path) -> str:
    if (path / "training_args.bin").is_file():
        return (
            f"The folder '{path}' holds a model but no log of its training. Call `trainer.save_state()` after "
            "`trainer.train()`, or save checkpoints (`save_strategy`)."
        )
    return f"The folder '{path}' holds no run that a report can show. {_WHAT_TO_PASS}"


def _read_stages(contents: RunContents, root: Path) -> None:
    """Reads the settings and the stages of a run."""
    manifest = (root / MANIFEST).relative_to(contents.folder).as_posix()
    remedy = "Without its settings, the run cannot be resumed. Start it again."
    contents.settings[manifest] = read_object(root / MANIFEST, Settings, remedy)
    found = {file.parent.name: _read_stage(file) for file in root.glob(f"*/{RESULT}")}
    for name in sorted(found, key=_order):
        contents.stages[name] = found[name]
    for folder in sorted(root.iterdir(), key=lambda entry: _order(entry.name)):
        is_stage = folder.is_dir() and folder.name.removesuffix(_PARTIAL) in found or folder.name.endswith(_PARTIAL)
        log = read_training_log(folder) if is_stage else None
        if log is not None:
            contents.logs[folder.name.replace(_PARTIAL, " (unfinished)")] = log
    contents.rounds += _read_rounds(root, contents.stages)
    _read_policies(contents, root)


def _read_stage(file: Path) -> dict[str, Any]:
    """Reads the result of a stage."""
    stage = {"metrics": {}, "seconds": None, "peak_memory_gib": None, **read_object(file, Stage, MAKE_AGAIN)}
    shape = STAGE_METRICS.get(split_round_name(file.parent.name)[0], Any)
    explain_damage(file, MAKE_AGAIN, lambda: require_shape(stage["metrics"], shape, "metrics"))
    return stage


def split_round_name(name: str) -> tuple[str, int]:
    """
    Splits the name of a stage into that of the first round, and the number of the round.

    Args:
        name (`str`):
            Name of the stage or of its unfinished folder.

    Returns:
        `tuple[str, int]`: For example `("gate", 2)` for `"gate_2"`, and `("gate", 1)` for `"gate"`.
    """
    base, _, number = name.removesuffix(_PARTIAL).rpartition("_")
    return (base, int(number)) if number.isdecimal() else (name.removesuffix(_PARTIAL), 1)


def _order(name: str) -> tuple[float, int, str]:
    """Sorts stages by round, and then by their order in a round. The evaluation comes last."""
    stage, number = split_round_name(name)
    names = list(STAGES)
    place = names.index(stage) if stage in names else len(names)
    return (math.inf if stage in ("evaluation", "outcome") else number), place, name


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
        for name in sorted(policies, key=lambda name: (name != "sft", *_order(name))):
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


def _read_trainer(contents: RunContents) -> None:
    """Reads what a trainer wrote to its `output_dir`."""
    log = read_training_log(contents.folder)
    if log is not None:
        contents.logs["trainer"] = log
        contents.settings[log.path.relative_to(contents.folder).as_posix()] = log.settings
    contents.completions = read_parquet(contents.folder / "completions", LoggedRow)
    _read_refinement(contents)


def _read_refinement(contents: RunContents) -> None:
    """Reads the pairs of a reward trainer. A training with other samples or settings adds its own to the folder."""
    times: dict[Path, float] = {}
    for shard in (contents.folder / _REFINEMENT).glob("pairs-*/shard-*.arrow"):
        times[shard.parent] = max(shard.stat().st_mtime, times.get(shard.parent, 0))
    if not times:
        return
    pairs = read_shards(max(times, key=lambda folder: (times[folder], folder.name)), PreferenceRow)
    if pairs is not None:
        contents.rounds.append(Round(len(contents.rounds) + 1, pairs=pairs, counts=count_reasons(pairs)))
    if len(times) > 1:
        contents.missing.append(
            f"The folder {_REFINEMENT} holds the pairs of {len(times)} trainings. Only those that were written last "
            "are shown."
        )


def _read_command(contents: RunContents) -> None:
    """Reads what `trl-rlp sample`, `prefer` and `anchors` write."""
    folder = contents.folder
    if (folder / "anchors.json").is_file():
        contents.anchors = read_stage_rows(folder, AnchorRow)
        contents.settings["anchors.json"] = read_object(folder / "anchors.json", dict, "Make the anchors again.")
    samples = _read_samples(contents)
    if samples is not None:
        answers = samples.column("answers") if "answers" in samples.names else None
        contents.rounds.append(Round(prompts=samples, answers=answers))
    settings = contents.settings.get(MANIFEST, {})
    if "generator" in settings:
        pairs = read_shards(folder / SHARDS, PreferenceRow)
        pairs = pairs or read_file_rows(folder / "preferences.jsonl", PreferenceRow)
        if pairs is not None:
            uses_threshold = settings["generator"] in ("spg", "majority_best")
            threshold = settings.get("threshold") if uses_threshold else None
            counts = count_reasons(pairs)
            contents.rounds.append(Round(pairs=pairs, counts=counts, threshold=threshold))
        if not (folder / "preferences.jsonl").is_file():
            contents.missing.append(
                "`trl-rlp prefer` has not finished. The same command goes on after the last finished shard."
            )
    elif "merge" in settings:
        if contents.anchors is None:
            contents.missing.append(
                "`trl-rlp anchors` has not finished. The same command goes on after the last finished shard."
            )
    elif samples is None and (folder / SHARDS / "samples.json").is_file() and not contents.stages:
        shards = len(list((folder / SHARDS).glob("shard-*.arrow")))
        contents.missing.append(
            f"`trl-rlp sample` has not finished ({shards} finished shards, which do not hold the prompts). The same "
            "command goes on after the last finished shard."
        )


def _read_samples(contents: RunContents) -> Rows | None:
    """Reads `samples.jsonl`. Columns of the prompts that have the names of ours may hold anything."""
    samples = read_file_rows(contents.folder / "samples.jsonl", SampledRow)
    if samples is None:
        return None
    foreign = []
    for columns, is_complete in (({"answers"}, True), (_GROUP_COLUMNS, has_groups(samples.names))):
        found = sorted(columns & samples.names)
        if not is_complete or not all(samples.has_shape(name, SampleRow) for name in found):
            foreign += found
    if foreign:
        contents.missing.append(
            "Columns of samples.jsonl that are left out, because their values are not what the commands write to "
            f"columns with these names: {', '.join(foreign)}."
        )
    return samples.without(foreign)


def _read_evaluation(contents: RunContents) -> None:
    """Reads what `trl-rlp evaluate` writes. Other programs write files with these names too."""
    folder = contents.folder
    contents.evaluation = _read_metrics(contents)
    if not contents.evaluation:
        if not (folder / ANSWERS_FILE).is_file():
            return
        contents.missing.append(
            "`trl-rlp evaluate` has not finished. The same command asks the judge only what it has not answered."
        )
    for name, file in ANNOTATION_FILES.items():
        path = folder / file
        if path.is_file():
            rows = explain_damage(path, _EVALUATE_AGAIN, lambda path=path: read_annotations(path))
            contents.annotations[name] = Rows(rows, AnnotationRow, path, _EVALUATE_AGAIN)


def _read_metrics(contents: RunContents) -> dict[str, Any]:
    """Reads the metrics. Beside another run and without a judge, a file that is no evaluation is another program's."""
    path = contents.folder / METRICS_FILE
    if not path.is_file():
        return {}
    try:
        metrics = explain_damage(path, _EVALUATE_AGAIN, lambda: read_json(path))
        if not isinstance(metrics, dict) or not _is_evaluation(metrics):
            return {}
        return explain_damage(path, _EVALUATE_AGAIN, lambda: require_shape(metrics, Evaluation))
    except ValueError:
        is_judged = any((path.parent / file).is_file() for file in (ANSWERS_FILE, *ANNOTATION_FILES.values()))
        if is_judged or not _has_parts(contents):
            raise
    return {}


def _is_evaluation(metrics: dict[str, Any]) -> bool:
    is_known = any(part in metrics for part in ("win_rate", "reward_model", "policy"))
    return is_known and all(isinstance(value, dict) for value in metrics.values())


def count_reasons(pairs: Rows) -> dict[str, int]:
    """
    Counts the prompts without a pair by reason.

    Args:
        pairs ([`Rows`]):
            Preferences.

    Returns:
        `dict[str, int]`: Empty if the rows have no reasons.
    """
    counts: dict[str, int] = {}
    for reason in pairs.column("reason") if "reason" in pairs.names else []:
        if reason:
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def _find_missing_stages(roots: list[Path], contents: RunContents) -> list[str]:
    """Returns sentences about the stages that the settings ask for and that have not finished."""
    settings = [contents.settings[(root / MANIFEST).relative_to(contents.folder).as_posix()] for root in roots]
    expected = {name for values in settings for name in list_expected_stages(values)}
    missing = sorted(expected - contents.stages.keys(), key=_order)
    sentences = []
    if missing:
        started = [name for name in missing if any((root / f"{name}{_PARTIAL}").is_dir() for root in roots)]
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


def list_expected_stages(settings: dict[str, Any]) -> list[str]:
    """
    Lists the main stages of a finished run of Algorithm 1.

    Args:
        settings (`dict`):
            Settings of the run, from its manifest.

    Returns:
        `list[str]`: Names of stages, with those around Algorithm 1 for the quickstart. Empty for the settings of
        something else.
    """
    if "question_seed" in settings:  # the quickstart, which starts Algorithm 1 after its own first stages
        algorithm = {"sft_model": "sft", "rounds": 1, "method": settings.get("method", "")}
        return ["sft", "preferences", *list_expected_stages(algorithm), "outcome"]
    is_trainer = "args.rlp_method" in settings
    if not is_trainer and not {"sft_model", "rounds", "method"} <= settings.keys():
        return []
    method = settings["args.rlp_method"] if is_trainer else settings["method"]
    rounds = settings.get("args.rlp_rounds", 1) if is_trainer else settings["rounds"]
    stages = ["reward_model"]
    if is_trainer or settings.get("sample_from") != "sft":
        stages.append("policy")
    for number in range(1, rounds + 1):
        names = ["policy_samples", *(["groups", "synthetic_preferences"] if "spg" in method else [])]
        names += ["refined_reward_model", "gate"]
        if not is_trainer or number < rounds:
            names.append("retrained_policy")
        stages += [round_name(name, number) for name in names]
    if settings.get("eval_prompt_dataset"):
        stages.append("evaluation")
    return stages
