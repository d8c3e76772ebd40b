"""The command `trl-rlp evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_rlp.cli.arguments import parse
from trl_rlp.cli.model_arguments import InferenceArguments
from trl_rlp.cli.sampling import require_effect
from trl_rlp.cli.server_arguments import ServerArguments
from trl_rlp.data.judges.asked_judge import require_tolerance
from trl_rlp.evaluation.alpaca_eval import Rows, read_annotations
from trl_rlp.evaluation.collected_metrics import METRICS_FILE, collect_metrics, load_pairs, load_samples, write_metrics
from trl_rlp.evaluation.judged_outputs import (
    ANNOTATION_FILES,
    ANSWERS_FILE,
    JUDGES,
    judge_outputs,
    load_judge,
    read_matching_outputs,
)
from trl_rlp.evaluation.length_control import Anchors, load_anchors, require_anchored
from trl_rlp.storage.json_files import replace_nan
from trl_rlp.storage.manifest import require_writable
from trl_rlp.storage.processes import process_state, run_on_main


@dataclass
class EvaluateArguments:
    """
    Arguments of `trl-rlp evaluate`. The command evaluates everything that is passed.

    Args:
        output_dir (`str`):
            Folder for `metrics.json` and the annotations of the judge.
        outputs (`str`, *optional*):
            The policy's outputs: AlpacaEval's `model_outputs.json`. Requires `reference_outputs` and a judge.
        reference_outputs (`str`, *optional*):
            The reference's outputs for the same instructions.
        other_outputs (`str`, *optional*):
            Outputs of a second policy. It is compared with the first one, prompt by prompt.
        annotations (`str`, *optional*):
            AlpacaEval's `annotations.json` of the policy. Replaces `outputs`.
        other_annotations (`str`, *optional*):
            AlpacaEval's `annotations.json` of a second policy.
        judge (`str`, *optional*, defaults to `"reward_model"`):
            Kind of judge: `reward_model`, `language_model` or `server`.
        judge_model (`str`, *optional*):
            Folder or Hub name of the judge, or its name on the server.
        base_url (`str`, *optional*):
            Base URL of the server's API. Required by `server`.
        max_tokens (`int`, *optional*, defaults to `16`):
            Maximum number of tokens per answer of the server's judge. A judge that reasons needs more.
        tolerance (`float`, *optional*, defaults to `0.1`):
            Maximum share of a judge's answers that name neither A nor B, in [0, 1]. For the judges `server` and
            `language_model`.
        anchors (`str`, *optional*):
            AlpacaEval's `df_gamed.csv`, for the length-controlled win rate on AlpacaEval's 805 instructions.
        reward_model (`str`, *optional*):
            Folder or Hub name of a reward model to evaluate on `preferences`.
        preferences (`str`, *optional*):
            Labeled pairs in TRL's preference format, or in RewardBench's format with a column `subset`.
        max_length (`int`, *optional*):
            Maximum input length of a reward model, in tokens. Longer inputs lose the beginning of their prompt.
        samples (`str`, *optional*):
            Policy samples to evaluate, as written by `trl-rlp sample`. With a column `answers`, the metrics include
            the accuracy.
        policy (`str`, *optional*):
            Folder or Hub name of the policy of `samples`, for its KL divergence. Requires `reference_policy`.
        reference_policy (`str`, *optional*):
            Folder or Hub name of the reference policy of the KL divergence.
    """

    output_dir: str = field(metadata={"help": "Folder for `metrics.json` and the annotations of the judge."})
    outputs: str | None = field(
        default=None,
        metadata={
            "help": (
                "The policy's outputs: AlpacaEval's `model_outputs.json`. Requires `reference_outputs` and a judge."
            )
        },
    )
    reference_outputs: str | None = field(
        default=None, metadata={"help": "The reference's outputs for the same instructions."}
    )
    other_outputs: str | None = field(
        default=None,
        metadata={"help": "Outputs of a second policy. It is compared with the first one, prompt by prompt."},
    )
    annotations: str | None = field(
        default=None, metadata={"help": "AlpacaEval's `annotations.json` of the policy. Replaces `outputs`."}
    )
    other_annotations: str | None = field(
        default=None, metadata={"help": "AlpacaEval's `annotations.json` of a second policy."}
    )
    judge: str = field(
        default="reward_model", metadata={"help": "Kind of judge: `reward_model`, `language_model` or `server`."}
    )
    judge_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the judge, or its name on the server."}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "Base URL of the server's API. Required by `server`."}
    )
    max_tokens: int = field(
        default=16,
        metadata={
            "help": "Maximum number of tokens per answer of the server's judge. A judge that reasons needs more."
        },
    )
    tolerance: float = field(
        default=0.1,
        metadata={
            "help": (
                "Maximum share of a judge's answers that name neither A nor B, in [0, 1]. For the judges `server` and "
                "`language_model`."
            )
        },
    )
    anchors: str | None = field(
        default=None,
        metadata={
            "help": "AlpacaEval's `df_gamed.csv`, for the length-controlled win rate on AlpacaEval's 805 instructions."
        },
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a reward model to evaluate on `preferences`."}
    )
    preferences: str | None = field(
        default=None,
        metadata={
            "help": "Labeled pairs in TRL's preference format, or in RewardBench's format with a column `subset`."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": (
                "Maximum input length of a reward model, in tokens. Longer inputs lose the beginning of their prompt."
            )
        },
    )
    samples: str | None = field(
        default=None,
        metadata={
            "help": (
                "Policy samples to evaluate, as written by `trl-rlp sample`. With a column `answers`, the metrics "
                "include the accuracy."
            )
        },
    )
    policy: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder or Hub name of the policy of `samples`, for its KL divergence. Requires `reference_policy`."
            )
        },
    )
    reference_policy: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the reference policy of the KL divergence."}
    )


def main(options: Sequence[str]) -> None:
    """
    Evaluates outputs, a reward model or policy samples, and writes `metrics.json`.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp evaluate`.
    """
    arguments, server_arguments, model_arguments = parse(
        "evaluate",
        "Evaluates model outputs, a reward model, or policy samples.",
        options,
        EvaluateArguments,
        ServerArguments,
        InferenceArguments,
    )
    _require_combination(arguments)
    _require_exact_models(arguments, model_arguments)
    _require_effects(arguments, server_arguments, model_arguments)
    connection = server_arguments.connection()
    folder = Path(arguments.output_dir)
    require_writable(folder)
    run_on_main(lambda: _require_new_files(folder, arguments))
    if arguments.preferences:  # All files are checked before a judge is asked.
        load_pairs(arguments.preferences)
    if arguments.samples:
        load_samples(arguments.samples)
    annotations, judge_counts, anchors = [], None, None
    if arguments.outputs or arguments.annotations:
        anchors = None if arguments.anchors is None else load_anchors(arguments.anchors)
        annotations, judge_counts = _load_annotations(arguments, anchors, connection, model_arguments, folder)
    names = ("reward_model", "preferences", "samples", "policy", "reference_policy", "max_length")
    metrics = collect_metrics(
        annotations=annotations,
        judge_counts=judge_counts,
        anchors=anchors,
        model_options={} if model_arguments.quantizes else model_arguments.policy_options(),
        **{name: vars(arguments)[name] for name in names},
    )
    path = run_on_main(lambda: write_metrics(folder, metrics))
    if process_state().is_main_process:
        _print_metrics(metrics)
        print(f"All metrics: {path}")


def _require_exact_models(arguments: EvaluateArguments, model_arguments: InferenceArguments) -> None:
    """Only a language model that is a judge may be quantized. The numbers of the other models are compared."""
    names = ["reward_model", "policy"]
    if arguments.judge_model and arguments.judge == "reward_model":
        names.append("judge_model")
    for name in names:
        if vars(arguments)[name]:
            model_arguments.require_exact(name)


def _require_new_files(folder: Path, arguments: EvaluateArguments) -> None:
    """
    Checks that no file of an earlier evaluation would be overwritten.

    An evaluation that was interrupted or failed has no metrics. The answers of a language judge are kept, and a
    reward model judges again without cost.
    """
    names = [METRICS_FILE]
    if not (folder / ANSWERS_FILE).exists():
        names += [file for name, file in ANNOTATION_FILES.items() if vars(arguments)[name]]
    existing = [name for name in names if (folder / name).exists()]
    if METRICS_FILE not in existing and arguments.judge == "reward_model":
        existing = [name for name in existing if not _is_made_by(folder / name, _name_judge(arguments))]
    if existing:
        raise ValueError(f"`output_dir` {folder} already has {existing}. Choose another `output_dir`, or move them.")


def _is_made_by(annotations: Path, annotator: str) -> bool:
    try:
        return all(row.get("annotator") == annotator for row in read_annotations(annotations))
    except ValueError:
        return False


def _require_combination(arguments: EvaluateArguments) -> None:
    if arguments.judge not in JUDGES:
        raise ValueError(f"`judge` must be one of {list(JUDGES)}, got {arguments.judge!r}.")
    required = {
        "outputs": ("reference_outputs", "judge_model"),
        "other_outputs": ("outputs",),
        "other_annotations": ("annotations",),
        "reference_outputs": ("outputs",),
        "judge_model": ("outputs",),
        "base_url": ("outputs",),
        "preferences": ("reward_model",),
        "reward_model": ("preferences",),
        "policy": ("samples", "reference_policy"),
        "reference_policy": ("samples", "policy"),
    }
    for name, others in required.items():
        for other in others:
            if vars(arguments)[name] is not None and vars(arguments)[other] is None:
                raise ValueError(f"`{name}` needs `{other}`. Pass both.")
    if not any((arguments.outputs, arguments.annotations, arguments.preferences, arguments.samples)):
        raise ValueError("Nothing to evaluate. Pass `outputs`, `annotations`, `preferences` or `samples`.")
    if arguments.outputs and arguments.annotations:
        raise ValueError("`outputs` and `annotations` are both passed. Pass outputs to judge, or their annotations.")
    if arguments.outputs and arguments.judge == "server" and arguments.base_url is None:
        raise ValueError('`judge`="server" needs `base_url`. Pass the base URL of its API, usually ending in /v1.')
    require_tolerance(arguments.tolerance)


def _require_effects(
    arguments: EvaluateArguments, server_arguments: ServerArguments, model_arguments: InferenceArguments
) -> None:
    """Checks that no option is set that nothing reads."""
    judge = arguments.judge if arguments.outputs else None
    if judge is None:
        _require_defaults(arguments, ("judge",), "without `outputs`")
    if judge in (None, "reward_model"):
        _require_defaults(arguments, ("tolerance",), "without a language judge")
    if judge != "server":
        _require_defaults(arguments, ("base_url", "max_tokens"), 'without `outputs` and `judge`="server"')
        require_effect(server_arguments, 'without `outputs` and `judge`="server"')
    if judge is None and not arguments.annotations:
        _require_defaults(arguments, ("anchors",), "without `outputs` or `annotations`")
    if judge != "reward_model" and not arguments.reward_model:
        _require_defaults(arguments, ("max_length",), "without a reward model")
    if judge in (None, "server") and not arguments.reward_model and not arguments.policy:
        require_effect(model_arguments, "if no model is loaded")


def _require_defaults(arguments: EvaluateArguments, names: Sequence[str], reason: str) -> None:
    for name in names:
        if vars(arguments)[name] != getattr(EvaluateArguments, name):
            raise ValueError(f"`{name}` has no effect {reason}. Remove it.")


def _load_annotations(
    arguments: EvaluateArguments,
    anchors: Anchors | None,
    connection: dict[str, Any],
    model_arguments: InferenceArguments,
    folder: Path,
) -> tuple[list[Rows], dict[str, int] | None]:
    """Reads the annotations, or reads the outputs and lets a judge annotate them."""
    if arguments.annotations:
        paths = [path for path in (arguments.annotations, arguments.other_annotations) if path]
        return [read_annotations(path) for path in paths], None
    paths = {name: vars(arguments)[name] for name in ANNOTATION_FILES if vars(arguments)[name]}
    outputs, reference_outputs = read_matching_outputs(paths, arguments.reference_outputs)
    if anchors is not None:
        require_anchored(len(reference_outputs), anchors)
    judge = load_judge(
        arguments.judge,
        arguments.judge_model,
        max_length=arguments.max_length,
        base_url=arguments.base_url,
        max_tokens=arguments.max_tokens,
        cache=folder / ANSWERS_FILE,
        model_options=model_arguments.policy_options(),
        **connection,
    )
    return judge_outputs(folder, outputs, reference_outputs, judge, _name_judge(arguments), arguments.tolerance)


def _name_judge(arguments: EvaluateArguments) -> str:
    """Returns the name of the judge in its annotations."""
    return f"{arguments.judge}: {arguments.judge_model}"


def _print_metrics(metrics: dict[str, Any]) -> None:
    for name in ("win_rate", "other_win_rate"):
        if name in metrics:
            print(f"{name}: {_format_win_rate(metrics[name])}")
    if "judge" in metrics:
        counts = metrics["judge"]
        print(
            f"judge: {counts['unreadable']} of {counts['asked']} answers name neither A nor B ({counts['cut']} were "
            f"cut), {counts['refused']} pairs left out"
        )
    if "comparison" in metrics:
        result = metrics["comparison"]
        interval = _format_interval(result["interval"])
        print(f"difference: {result['difference']:+.3f}{interval} on {result['prompts']} prompts")
    if "reward_model" in metrics:
        result = metrics["reward_model"]
        print(
            f"reward model: accuracy {result['accuracy']:.3f}{_format_interval(result['accuracy_interval'])} on "
            f"{result['pairs']} pairs, length baseline {result['length_accuracy']:.3f}, calibration error "
            f"{result['calibration_error']:.3f}"
        )
        for section, score in result.get("sections", {}).items():
            print(f"  {section}: {score:.3f}")
    if "policy" in metrics:
        known = {name: value for name, value in replace_nan(metrics["policy"]).items() if value is not None}
        print("policy: " + ", ".join(f"{name} {value:.4g}" for name, value in known.items()))


def _format_win_rate(result: dict[str, Any]) -> str:
    text = (
        f"{result['win_rate']:.3f}{_format_interval(result['interval'])} on {result['prompts']} prompts, "
        f"{result['alpaca_eval']['discrete_win_rate'] / 100:.3f} discrete ({result['wins']} wins, "
        f"{result['draws']} draws, {result['losses']} losses)"
    )
    if result["length_controlled"]:
        text += f", {result['length_controlled']['length_controlled_win_rate']:.3f} at equal length"
    return text


def _format_interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
