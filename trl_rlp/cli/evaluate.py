"""`trl-rlp evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_rlp.cli.arguments import parse
from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import Judge, reward_judge, with_user_turns
from trl_rlp.data.judges.language_model_judge import language_model_judge
from trl_rlp.data.judges.server_judge import ServerJudge
from trl_rlp.evaluation.alpaca_eval import (
    Rows,
    annotate,
    read_annotations,
    read_model_outputs,
    require_same_instructions,
    write_rows,
)
from trl_rlp.evaluation.annotation_report import compare_annotations, describe_annotations
from trl_rlp.evaluation.length_control import load_anchors
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference
from trl_rlp.evaluation.reward_bench import reward_bench_pairs
from trl_rlp.evaluation.reward_report import describe_reward_model
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import replace_nan, write_json


JUDGES = ("reward_model", "language_model", "server")
FIGURES = "figures.json"
ANNOTATIONS = {"outputs": "annotations.json", "other_outputs": "other_annotations.json"}
"""File of a judge's annotations, by the argument with the outputs that they are of."""


@dataclass
class EvaluateArguments:
    """
    Arguments of `trl-rlp evaluate`. What is evaluated follows from what is given.

    Args:
        output_dir (`str`):
            Folder for `figures.json` and the annotations that a judge makes.
        outputs (`str`, *optional*):
            The policy's outputs, AlpacaEval's `model_outputs.json`. Needs `reference_outputs` and a judge.
        reference_outputs (`str`, *optional*):
            The reference's outputs of the same instructions.
        other_outputs (`str`, *optional*):
            Outputs of a second policy, which is compared with the first prompt by prompt.
        annotations (`str`, *optional*):
            Instead of outputs: AlpacaEval's `annotations.json` of the policy.
        other_annotations (`str`, *optional*):
            Likewise of a second policy.
        judge (`str`, *optional*, defaults to `"reward_model"`):
            Who compares outputs: `"reward_model"`, `"language_model"` or `"server"`.
        judge_model (`str`, *optional*):
            Folder or Hub name of the judge, or its name on the server.
        base_url (`str`, *optional*):
            Where the server's API begins, for `"server"`.
        api_key (`str`, *optional*):
            Key for a server that wants one.
        max_tokens (`int`, *optional*, defaults to `16`):
            Longest answer of the server's judge; one that reasons needs more.
        tolerance (`float`, *optional*, defaults to `0.1`):
            Share of the answers of a server's or a language model's judge that may name neither A nor B, in [0, 1].
        anchors (`str`, *optional*):
            AlpacaEval's `df_gamed.csv`, for its 805 instructions: its own length-controlled win rate.
        reward_model (`str`, *optional*):
            Folder or Hub name of a reward model to describe on `preferences`.
        preferences (`str`, *optional*):
            Labeled pairs: TRL's preference format, or RewardBench's with its `subset`.
        max_length (`int`, *optional*):
            Tokens that a reward model reads at most; longer texts lose the beginning of their prompt.
        samples (`str`, *optional*):
            Samples of a policy, as `trl-rlp sample` writes them, to describe; with a column `answers` also its
            accuracy.
        policy (`str`, *optional*):
            Folder or Hub name of the policy that drew `samples`: with `reference_policy` its KL divergence.
        reference_policy (`str`, *optional*):
            Folder or Hub name of the policy that it is measured to.
    """

    output_dir: str = field(metadata={"help": "Folder for `figures.json` and the annotations that a judge makes."})
    outputs: str | None = field(
        default=None, metadata={"help": "The policy's outputs, AlpacaEval's `model_outputs.json`. Needs a judge."}
    )
    reference_outputs: str | None = field(
        default=None, metadata={"help": "The reference's outputs of the same instructions."}
    )
    other_outputs: str | None = field(
        default=None, metadata={"help": "Outputs of a second policy, compared with the first prompt by prompt."}
    )
    annotations: str | None = field(
        default=None, metadata={"help": "Instead of outputs: AlpacaEval's `annotations.json` of the policy."}
    )
    other_annotations: str | None = field(default=None, metadata={"help": "Likewise of a second policy."})
    judge: str = field(
        default="reward_model", metadata={"help": "Who compares: `reward_model`, `language_model` or `server`."}
    )
    judge_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the judge, or its name on the server."}
    )
    base_url: str | None = field(default=None, metadata={"help": "Where the server's API begins, for `server`."})
    api_key: str | None = field(default=None, metadata={"help": "Key for a server that wants one."})
    max_tokens: int = field(
        default=16, metadata={"help": "Longest answer of the server's judge; one that reasons needs more."}
    )
    tolerance: float = field(
        default=0.1, metadata={"help": "Share of an asked judge's answers that may name neither A nor B, in [0, 1]."}
    )
    anchors: str | None = field(
        default=None, metadata={"help": "AlpacaEval's `df_gamed.csv`, for its own length-controlled win rate."}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a reward model to describe on `preferences`."}
    )
    preferences: str | None = field(
        default=None, metadata={"help": "Labeled pairs: TRL's preference format, or RewardBench's with `subset`."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens that a reward model reads at most."})
    samples: str | None = field(
        default=None, metadata={"help": "Samples of a policy to describe, as `trl-rlp sample` writes them."}
    )
    policy: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the policy that drew `samples`, for its KL divergence."}
    )
    reference_policy: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the policy that it is measured to."}
    )


def main(options: Sequence[str]) -> None:
    """
    Evaluates what it is given and writes `figures.json`.

    Args:
        options (`Sequence[str]`):
            Words after `trl-rlp evaluate`.
    """
    (arguments,) = parse(
        "evaluate", "Evaluates outputs, a reward model, or samples of a policy.", options, EvaluateArguments
    )
    _require_fit(arguments)
    folder = Path(arguments.output_dir)
    _require_new(folder, arguments)
    figures: dict[str, Any] = {}
    if arguments.outputs or arguments.annotations:
        figures |= _win_rates(arguments, folder)
    if arguments.preferences:
        figures["reward_model"] = _reward_model(arguments)
    if arguments.samples:
        figures["policy"] = _policy(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FIGURES, replace_nan(figures))
    _print(figures)
    print(f"All figures: {folder / FIGURES}")


def _require_new(folder: Path, arguments: EvaluateArguments) -> None:
    """What is written must not take the place of another evaluation's files."""
    names = [FIGURES, *(ANNOTATIONS[name] for name in ANNOTATIONS if vars(arguments)[name])]
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ValueError(f"`output_dir` {folder} holds {there} already. Choose another `output_dir`, or move them.")


def _require_fit(arguments: EvaluateArguments) -> None:
    if arguments.judge not in JUDGES:
        raise ValueError(f"`judge` must be one of {list(JUDGES)}, got {arguments.judge!r}.")
    needs = {
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
    for name, others in needs.items():
        for other in others:
            if vars(arguments)[name] is not None and vars(arguments)[other] is None:
                raise ValueError(f"`{name}` needs `{other}`. Pass both.")
    if not any((arguments.outputs, arguments.annotations, arguments.preferences, arguments.samples)):
        raise ValueError("Nothing to evaluate. Pass `outputs`, `annotations`, `preferences` or `samples`.")
    if arguments.outputs and arguments.annotations:
        raise ValueError("`outputs` and `annotations` are both given. Pass outputs to judge, or what was judged.")
    if arguments.outputs and arguments.judge == "server" and arguments.base_url is None:
        raise ValueError('`judge`="server" needs `base_url`. Pass where its API begins, usually ending in /v1.')


def _judge(arguments: EvaluateArguments) -> Judge:
    if arguments.judge == "server":
        return ServerJudge(
            arguments.base_url,
            arguments.judge_model,
            max_tokens=arguments.max_tokens,
            tolerance=1.0,  # what was paid for is written before it is refused
            api_key=arguments.api_key,
        )
    if arguments.judge == "language_model":
        return language_model_judge(*load_policy(arguments.judge_model))
    model, processing_class = load_reward_model(arguments.judge_model)
    judge = reward_judge(model, processing_class, max_length=arguments.max_length)
    return judge if processing_class.chat_template is None else with_user_turns(judge)


def _win_rates(arguments: EvaluateArguments, folder: Path) -> dict[str, Any]:
    anchors = None if arguments.anchors is None else load_anchors(arguments.anchors)
    answers: dict[str, Any] = {}
    if arguments.annotations:
        paths = [path for path in (arguments.annotations, arguments.other_annotations) if path]
        annotations = [read_annotations(path) for path in paths]
    else:
        annotations, answers = _annotated(arguments, folder)
    figures = {
        name: describe_annotations(rows, anchors)
        for name, rows in zip(("win_rate", "other_win_rate"), annotations, strict=False)
    }
    if len(annotations) == 2:
        figures["comparison"] = compare_annotations(*annotations)
    return {**figures, **answers}


def _annotated(arguments: EvaluateArguments, folder: Path) -> tuple[list[Rows], dict[str, Any]]:
    """Reads and matches all files before a judge is asked, and keeps what it said before it is read."""
    reference = read_model_outputs(arguments.reference_outputs)
    outputs = {name: read_model_outputs(vars(arguments)[name]) for name in ANNOTATIONS if vars(arguments)[name]}
    for name, rows in outputs.items():
        require_same_instructions(rows, reference, name)
    judge, annotations = _judge(arguments), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in outputs.items():
        annotations.append(annotate(rows, reference, judge, f"{arguments.judge}: {arguments.judge_model}"))
        write_rows(folder / ANNOTATIONS[name], annotations[-1])
    if not isinstance(judge, AskedJudge):
        return annotations, {}
    try:
        judge.require_readable(arguments.tolerance)
    except ValueError as error:
        raise ValueError(f"{error} What it said stands in {folder}; pass it as `annotations` to take it.") from None
    return annotations, {"judge": {"asked": judge.asked, "unreadable": judge.unreadable}}


def _reward_model(arguments: EvaluateArguments) -> dict[str, Any]:
    model, processing_class = load_reward_model(arguments.reward_model)
    pairs = load_rows(arguments.preferences)
    if {"subset", "question", "input"} & set(pairs.column_names):
        pairs = reward_bench_pairs(pairs, chat=processing_class.chat_template is not None)
    return describe_reward_model(model, processing_class, pairs, max_length=arguments.max_length)


def _policy(arguments: EvaluateArguments) -> dict[str, Any]:
    samples = load_rows(arguments.samples)
    figures = describe_outputs(samples, samples["answers"][:] if "answers" in samples.column_names else None)
    if arguments.policy is not None:
        policy, processing_class = load_policy(arguments.policy)
        reference, _ = load_policy(arguments.reference_policy)
        figures["kl"] = kl_to_reference(policy, reference, processing_class, samples)
    return figures


def _print(figures: dict[str, Any]) -> None:
    for name in ("win_rate", "other_win_rate"):
        if name in figures:
            found = figures[name]
            controlled = found["length_controlled"]
            at_equal_length = f", {controlled['length_controlled_win_rate']:.3f} at equal length" if controlled else ""
            counted = found["alpaca_eval"]["discrete_win_rate"] / 100
            print(
                f"{name}: {found['win_rate']:.3f}{_within(found['interval'])} on {found['prompts']} prompts, "
                f"{counted:.3f} counted ({found['wins']} wins, {found['draws']} draws, {found['losses']} losses)"
                f"{at_equal_length}"
            )
    if "judge" in figures:
        print(f"judge: {figures['judge']['unreadable']} of {figures['judge']['asked']} answers name neither A nor B")
    if "comparison" in figures:
        found = figures["comparison"]
        print(f"difference: {found['difference']:+.3f}{_within(found['interval'])} on {found['prompts']} prompts")
    if "reward_model" in figures:
        found = figures["reward_model"]
        print(
            f"reward model: accuracy {found['accuracy']:.3f}{_within(found['accuracy_interval'])} on {found['pairs']} "
            f"pairs, the longer one {found['length_accuracy']:.3f}, calibration error {found['calibration_error']:.3f}"
        )
        for section, score in found.get("sections", {}).items():
            print(f"  {section}: {score:.3f}")
    if "policy" in figures:
        known = {name: value for name, value in replace_nan(figures["policy"]).items() if value is not None}
        print("policy: " + ", ".join(f"{name} {value:.4g}" for name, value in known.items()))


def _within(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
