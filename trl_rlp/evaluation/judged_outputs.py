"""Judges files of model outputs. The annotations are saved, so no output has to be judged twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import Judge, add_user_turns, reward_judge
from trl_rlp.data.judges.language_model import language_model_judge
from trl_rlp.data.judges.server import ServerJudge
from trl_rlp.evaluation.alpaca_eval import Rows, annotate, read_model_outputs, require_same_instructions, write_rows
from trl_rlp.storage.artifacts import load_policy, load_reward_model


ANNOTATION_FILES = {"outputs": "annotations.json", "other_outputs": "other_annotations.json"}
"""File of the annotations for the outputs of the first policy and of the second one."""


def load_judge(
    kind: str,
    model: str,
    *,
    max_length: int | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    max_tokens: int = 16,
) -> Judge:
    """
    Loads a judge. It accepts all answers, readable or not. [`judge_outputs`] checks them after it has saved them.

    Args:
        kind (`str`):
            A key of [`JUDGES`].
        model (`str`):
            Folder or Hub name of the judge, or its name on the server.
        max_length (`int`, *optional*):
            For `"reward_model"`: maximum number of tokens per row, as in [`score`].
        base_url (`str`, *optional*):
            For `"server"`: base URL of the API, usually ending in `/v1`.
        api_key (`str`, *optional*):
            For `"server"`: key, if the server requires one.
        max_tokens (`int`, *optional*, defaults to `16`):
            For `"server"`: maximum number of tokens per answer.

    Returns:
        `Callable`: `judge(prompts, firsts, seconds)`. The judge of a chat reward model reads text prompts as user
        messages.

    Raises:
        OSError, ValueError: If the kind is unknown, or the model cannot be loaded or is of another kind.
    """
    if kind not in JUDGES:
        raise ValueError(f"`kind` must be one of {list(JUDGES)}, got {kind!r}.")
    settings = {"max_length": max_length, "base_url": base_url, "api_key": api_key, "max_tokens": max_tokens}
    return JUDGES[kind](model, **settings)


def _load_reward_judge(model: str, *, max_length: int | None, **unused: Any) -> Judge:
    reward_model, processing_class = load_reward_model(model)
    judge = reward_judge(reward_model, processing_class, max_length=max_length)
    return judge if processing_class.chat_template is None else add_user_turns(judge)


def _load_language_model_judge(model: str, **unused: Any) -> Judge:
    return language_model_judge(*load_policy(model))


def _load_server_judge(model: str, *, base_url: str, api_key: str | None, max_tokens: int, **unused: Any) -> Judge:
    return ServerJudge(base_url, model, max_tokens=max_tokens, tolerance=1.0, api_key=api_key)


JUDGES: dict[str, Callable[..., Judge]] = {
    "reward_model": _load_reward_judge,
    "language_model": _load_language_model_judge,
    "server": _load_server_judge,
}
"""Kinds of judges. Each function loads a judge from a model and the other arguments of [`load_judge`]."""


def read_matching_outputs(paths: dict[str, str | Path], reference_path: str | Path) -> tuple[dict[str, Rows], Rows]:
    """
    Reads the outputs of policies and of their reference, and checks that all have the same instructions.

    Args:
        paths (`dict[str, str]`):
            `model_outputs.json` of each policy. The keys name the files in error messages.
        reference_path (`str` or `Path`):
            `model_outputs.json` of the reference.

    Returns:
        `tuple[dict, list[dict]]`: The outputs of each policy, and the outputs of the reference.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file has another format, or the instructions differ.
    """
    reference_outputs = read_model_outputs(reference_path)
    outputs = {name: read_model_outputs(path) for name, path in paths.items()}
    for name, rows in outputs.items():
        require_same_instructions(rows, reference_outputs, name)
    return outputs, reference_outputs


def judge_outputs(
    folder: Path, outputs: dict[str, Rows], reference_outputs: Rows, judge: Judge, annotator: str, tolerance: float
) -> tuple[list[Rows], dict[str, int] | None]:
    """
    Annotates the outputs of one or two policies, and saves the annotations before it checks the judge's answers.

    Args:
        folder (`Path`):
            Folder for the files of [`ANNOTATION_FILES`]. It is created if it does not exist.
        outputs (`dict[str, list[dict]]`):
            Outputs of each policy, from [`read_matching_outputs`], with keys of [`ANNOTATION_FILES`].
        reference_outputs (`list[dict]`):
            Outputs of the reference.
        judge (`Callable`):
            From [`load_judge`].
        annotator (`str`):
            Name of the judge.
        tolerance (`float`):
            Maximum share of answers that may be unreadable, in [0, 1]. A reward model has no such answers.

    Returns:
        `tuple[list, dict]`: The annotations of each policy, and the counts `asked` (answers) and `unreadable` (answers
        that name neither A nor B). The counts are `None` for a reward model.

    Raises:
        ValueError: If the judge returns a value outside [0, 1], or too many of its answers are unreadable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    for name, rows in outputs.items():
        annotations.append(annotate(rows, reference_outputs, judge, annotator))
        write_rows(folder / ANNOTATION_FILES[name], annotations[-1])
    if not isinstance(judge, AskedJudge):
        return annotations, None
    try:
        judge.require_readable(tolerance)
    except ValueError as error:
        raise ValueError(f"{error} The annotations are in {folder}. Pass them as `annotations` to use them.") from None
    return annotations, {"asked": judge.asked, "unreadable": judge.unreadable}
