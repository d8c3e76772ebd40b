"""Reads what a single trainer or a command wrote: logs, samples, preferences, anchors and evaluations."""

from pathlib import Path
from typing import Any

from trl_rlp.data.groups.clustering import has_groups
from trl_rlp.evaluation.alpaca_eval import read_annotations
from trl_rlp.evaluation.collected_metrics import METRICS_FILE
from trl_rlp.evaluation.judged_outputs import ANNOTATION_FILES, ANSWERS_FILE
from trl_rlp.report.rows import (
    Rows,
    explain_damage,
    read_file_rows,
    read_object,
    read_parquet,
    read_shards,
    read_stage_rows,
)
from trl_rlp.report.run_contents import Round, RunContents
from trl_rlp.report.shapes import (
    AnchorRow,
    AnnotationRow,
    Evaluation,
    LoggedRow,
    PreferenceRow,
    SampledRow,
    SampleRow,
    require_shape,
)
from trl_rlp.report.training_log import read_training_log
from trl_rlp.storage.json_files import read_json
from trl_rlp.storage.run_folder import MANIFEST, SHARDS


_EVALUATE_AGAIN = "Run `trl-rlp evaluate` again, with another `output_dir`."
_GROUP_COLUMNS = {"cluster_ids", "confidence", "confidence_upper"}
_REFINEMENT = "_refinement"


def read_trainer(contents: RunContents) -> None:
    """
    Reads what a trainer wrote to its `output_dir`.

    Args:
        contents ([`RunContents`]):
            Gets what is found.

    Raises:
        ValueError: If a file is damaged.
    """
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


def read_command(contents: RunContents) -> None:
    """
    Reads what `trl-rlp sample`, `prefer` and `anchors` write.

    Args:
        contents ([`RunContents`]):
            Gets what is found.

    Raises:
        ValueError: If a file is damaged.
    """
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


def read_evaluation(contents: RunContents) -> None:
    """
    Reads what `trl-rlp evaluate` writes. Other programs write files with these names too.

    Args:
        contents ([`RunContents`]):
            Gets what is found. It already has everything else, which tells an evaluation from another program's file.

    Raises:
        ValueError: If a file is damaged.
    """
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
        if is_judged or not contents.has_parts():
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
