"""Judges files of model outputs. The answers and annotations are saved, so no output has to be judged twice."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_rlp.data.judges.asked_judge import AskedJudge, require_tolerance
from trl_rlp.data.judges.judge import Judge, add_user_turns, reward_judge
from trl_rlp.data.judges.language_model import language_model_judge
from trl_rlp.data.judges.server import ServerJudge
from trl_rlp.evaluation.alpaca_eval import (
    Rows,
    annotate,
    read_model_outputs,
    require_same_instructions,
    require_valid_texts,
    write_rows,
)
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import process_state, run_on_main


ANNOTATION_FILES = {"outputs": "annotations.json", "other_outputs": "other_annotations.json"}
"""File of the annotations for the outputs of the first policy and of the second one."""

ANSWERS_FILE = "judge_answers.jsonl"
"""File of the answers of a language judge, see [`AnswerCache`]. An interrupted evaluation resumes from it."""


def load_judge(
    kind: str,
    model: str | Path,
    *,
    max_length: int | None = None,
    base_url: str | None = None,
    max_tokens: int = 16,
    cache: str | os.PathLike | None = None,
    model_options: dict[str, Any] | None = None,
    **connection: Any,
) -> Judge:
    """
    Loads a judge. It accepts all answers, readable or not. [`judge_outputs`] checks them after it has saved them.

    Args:
        kind (`str`):
            A key of [`JUDGES`].
        model (`str` or `Path`):
            Folder or Hub name of the judge, or its name on the server.
        max_length (`int`, *optional*):
            For `"reward_model"`: maximum number of tokens per row, as in [`score`].
        base_url (`str`, *optional*):
            For `"server"`: base URL of the API, usually ending in `/v1`.
        max_tokens (`int`, *optional*, defaults to `16`):
            For `"server"`: maximum number of tokens per answer.
        cache (`str` or `os.PathLike`, *optional*):
            For `"server"` and `"language_model"`: file that stores the answers.
        model_options (`dict`, *optional*):
            For `"reward_model"` and `"language_model"`: further arguments of [`load_reward_model`] and
            [`load_policy`].
        connection:
            For `"server"`: other arguments of [`ServerJudge`], such as `api_key` and `timeout`.

    Returns:
        `Callable`: `judge(prompts, firsts, seconds)`. The judge of a chat reward model reads text prompts as user
        messages.

    Raises:
        OSError, ValueError: If the kind is unknown, or the model cannot be loaded or is of another kind.
    """
    if kind not in JUDGES:
        raise ValueError(f"`kind` must be one of {list(JUDGES)}, got {kind!r}.")
    settings = {"max_length": max_length, "base_url": base_url, "max_tokens": max_tokens, "cache": cache}
    return JUDGES[kind](model, model_options=model_options or {}, **settings, **connection)


def _load_reward_judge(model: str, *, max_length: int | None, model_options: dict[str, Any], **unused: Any) -> Judge:
    reward_model, processing_class = load_reward_model(model, **model_options)
    judge = reward_judge(reward_model, processing_class, max_length=max_length, share_batches=True)
    return judge if processing_class.chat_template is None else add_user_turns(judge)


def _load_language_model_judge(
    model: str, *, cache: str | os.PathLike | None, model_options: dict[str, Any], **unused: Any
) -> Judge:
    return language_model_judge(*load_policy(model, **model_options), cache=cache, share_batches=True)


def _load_server_judge(
    model: str,
    *,
    base_url: str,
    max_length: int | None,
    cache: str | os.PathLike | None,
    model_options: dict[str, Any],
    **settings: Any,
) -> Judge:
    cache = cache if process_state().is_main_process else None  # only the main process asks
    return ServerJudge(base_url, model, tolerance=1.0, cache=cache, **settings)


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
        ValueError: If a file has another format, the instructions differ, or a text is not valid.
    """
    reference_outputs = read_model_outputs(reference_path)
    outputs = {name: read_model_outputs(path) for name, path in paths.items()}
    require_valid_texts(reference_outputs, "reference_outputs")
    for name, rows in outputs.items():
        require_same_instructions(rows, reference_outputs, name)
        require_valid_texts(rows, name)
    return outputs, reference_outputs


def judge_outputs(
    folder: str | Path,
    outputs: dict[str, Rows],
    reference_outputs: Rows,
    judge: Judge,
    annotator: str,
    tolerance: float,
) -> tuple[list[Rows], dict[str, int] | None]:
    """
    Annotates the outputs of one or two policies, and saves the annotations before it checks the judge's answers.

    A pair that the judge could not read is left out: its annotation has no preference. After an error or an interrupt,
    a second call with the same judge and its `cache` asks only new questions.

    Under `accelerate launch`, every process must call this function. The processes share the batches of a judge from
    [`load_judge`]. Only the main process asks a server, and only the main process writes.

    Args:
        folder (`str` or `Path`):
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
        `tuple[list, dict]`: The annotations of each policy, and the counts `asked` (answers), `unreadable` (answers
        that name neither A nor B), `cut` (unreadable answers that were cut by the token limit) and `refused` (pairs
        that were left out). The counts are `None` for a reward model.

    Raises:
        ValueError: If `tolerance` is out of range, the judge returns a value outside [0, 1], or too many of its
            answers are unreadable.
    """
    require_tolerance(tolerance)
    folder = Path(expand_path(folder))

    def annotate_all() -> list[Rows]:
        return [annotate(rows, reference_outputs, judge, annotator) for rows in outputs.values()]

    annotations = run_on_main(annotate_all) if isinstance(judge, ServerJudge) else annotate_all()
    by_name = dict(zip(outputs, annotations, strict=True))
    return annotations, run_on_main(lambda: _save_annotations(folder, by_name, judge, tolerance))


def _save_annotations(
    folder: Path, annotations: dict[str, Rows], judge: Judge, tolerance: float
) -> dict[str, int] | None:
    """Writes the annotations, checks the answers of the judge, and returns their counts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in annotations.items():
        write_rows(folder / ANNOTATION_FILES[name], rows)
    if not isinstance(judge, AskedJudge):
        return None
    try:
        judge.require_readable(tolerance)
    except ValueError as error:
        raise ValueError(f"{error} The annotations are in {folder}. Pass them as `annotations` to use them.") from None
    return {name: getattr(judge, name) for name in ("asked", "unreadable", "cut", "refused")}
