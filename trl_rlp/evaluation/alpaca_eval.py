"""AlpacaEval's files: reads and writes model outputs and annotations, and annotates outputs with a judge."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.judges.judge import Judge, judge_pairs
from trl_rlp.data.turns import final_text, split_assistant_prefill
from trl_rlp.data.validation import prompt_text, require_columns, require_encodable
from trl_rlp.evaluation.reward_metrics import preference_accuracy, standard_error
from trl_rlp.storage.data_files import read_rows
from trl_rlp.storage.json_files import write_json
from trl_rlp.storage.paths import expand_path


Rows = list[dict[str, Any]]
"""Entries of one of AlpacaEval's JSON files."""

TEXT_COLUMNS = ("instruction", "output", "output_1", "output_2")
"""Columns that hold text. The other required columns hold numbers or null."""


def read_model_outputs(path: str | Path) -> Rows:
    """
    Reads a model's outputs.

    Args:
        path (`str` or `Path`):
            `model_outputs.json`: a JSON list. Each entry has `instruction` and `output` as text, and usually
            `generator` and `dataset`.

    Returns:
        `list[dict]`: The entries.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file has another format, is empty, or has a duplicate instruction.
    """
    return _read_rows(path, ("instruction", "output"))


def write_model_outputs(path: str | Path, outputs: Dataset, generator: str) -> None:
    """
    Writes completions in the format that `alpaca_eval --model_outputs` reads.

    Args:
        path (`str` or `Path`):
            File to write.
        outputs ([`~datasets.Dataset`]):
            Columns `prompt` and `completion`, as text or messages. A column `completions` also works, and its first
            completion is written. The messages of a prompt are written as their contents, one per line. An assistant
            message at its end is the beginning of the output. Of a completion with tool calls, the last message is
            written. A column `dataset` is kept.
        generator (`str`):
            Name of the policy.

    Raises:
        ValueError: If a column is missing, there is no row, or a prompt appears twice.
    """
    column = "completion" if "completion" in outputs.column_names else "completions"
    outputs = require_columns(outputs, ["prompt", column], "outputs")
    rows = []
    for row in outputs:
        prompt, prefill = split_assistant_prefill(row["prompt"])
        rows.append(
            {
                **({"dataset": row["dataset"]} if "dataset" in row else {}),
                "instruction": prompt_text(prompt),
                "output": prefill + final_text(row[column] if column == "completion" else row[column][0]),
                "generator": generator,
            }
        )
    if len({row["instruction"] for row in rows}) < len(rows):
        raise ValueError("`outputs` has a duplicate prompt, but AlpacaEval matches by prompt. Keep one row of each.")
    write_rows(path, rows)


def annotate(outputs: Rows, reference_outputs: Rows, judge: Judge, annotator: str) -> Rows:
    """
    Annotates a model's outputs: a judge compares each one with the reference's output.

    Args:
        outputs (`list[dict]`):
            The model's outputs, from [`read_model_outputs`].
        reference_outputs (`list[dict]`):
            The reference's outputs for the same instructions, in any order.
        judge (`Callable`):
            The judge, see [`Judge`]. It decides itself how to handle the order of the two outputs.
        annotator (`str`):
            Name of the judge.

    Returns:
        `list[dict]`: Annotations in AlpacaEval's format, in the order of the reference. `output_1` is the reference's
        output and `output_2` is the model's. `preference` is in [1, 2]: one plus the probability that the model's
        output is better, or `None` if the judge left the pair out. Equal outputs are a draw, and the judge does not
        see them.

    Raises:
        ValueError: If the instructions differ, a text is not valid, or the judge returns a value outside [0, 1].
    """
    require_same_instructions(outputs, reference_outputs)
    require_valid_texts(outputs, "outputs")
    require_valid_texts(reference_outputs, "reference_outputs")
    by_instruction = {row["instruction"]: row for row in outputs}
    pairs = [(reference, by_instruction[reference["instruction"]]) for reference in reference_outputs]
    different = [pair for pair in pairs if pair[0]["output"] != pair[1]["output"]]
    probabilities = iter(
        judge_pairs(
            judge,
            [reference["instruction"] for reference, _ in different],
            [model["output"] for _, model in different],
            [reference["output"] for reference, _ in different],
        )
    )
    return [
        {
            "instruction": reference["instruction"],
            "output_1": reference["output"],
            "generator_1": reference.get("generator", "reference"),
            "output_2": model["output"],
            "generator_2": model.get("generator", "model"),
            **({"dataset": reference["dataset"]} if "dataset" in reference else {}),
            "annotator": annotator,
            "preference": _to_preference(0.5 if reference["output"] == model["output"] else next(probabilities)),
        }
        for reference, model in pairs
    ]


def _to_preference(probability: float | None) -> float | None:
    return None if probability is None else 1.0 + probability


def require_valid_texts(outputs: Rows, name: str) -> None:
    """
    Checks that all instructions and outputs can be sent to a judge and saved.

    Args:
        outputs (`list[dict]`):
            A model's outputs.
        name (`str`):
            Name of the argument, for the error message.

    Raises:
        ValueError: If a text holds half of a surrogate pair.
    """
    for column in ("instruction", "output"):
        require_encodable([row[column] for row in outputs], name)


def require_same_instructions(outputs: Rows, reference_outputs: Rows, name: str = "outputs") -> None:
    """
    Checks that two sets of outputs have the same instructions.

    Args:
        outputs (`list[dict]`):
            The model's outputs.
        reference_outputs (`list[dict]`):
            The reference's outputs.
        name (`str`, *optional*, defaults to `"outputs"`):
            Name of the first argument in the error message.

    Raises:
        ValueError: If an instruction is only in one of them, or appears twice in one of them.
    """
    found, expected = ({row["instruction"] for row in rows} for rows in (outputs, reference_outputs))
    for side, rows, distinct in ((name, outputs, found), ("reference_outputs", reference_outputs, expected)):
        if len(distinct) < len(rows):
            raise ValueError(f"`{side}` has a duplicate instruction. Keep one output of each.")
    missing = {name: sorted(expected - found), "reference_outputs": sorted(found - expected)}
    total = len(found | expected)
    problems = [
        f"`{side}` lacks {len(instructions)} of the {total} instructions, such as {instructions[0][:60]!r}"
        for side, instructions in missing.items()
        if instructions
    ]
    if problems:
        raise ValueError(f"{' and '.join(problems)}. Compare outputs for the same prompts.")


def read_annotations(path: str | Path) -> Rows:
    """
    Reads annotations.

    Args:
        path (`str` or `Path`):
            `annotations.json`: a JSON list. Each entry has `instruction`, `output_1` (the reference's output),
            `output_2` (the model's output) and `preference`.

    Returns:
        `list[dict]`: The entries.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file has another format, is empty, or has a duplicate instruction.
    """
    return _read_rows(path, ("instruction", "output_1", "output_2", "preference"))


def write_rows(path: str | Path, rows: Rows) -> None:
    """
    Writes outputs or annotations, completely or not at all.

    Args:
        path (`str` or `Path`):
            File to write.
        rows (`list[dict]`):
            The entries.
    """
    write_json(expand_path(path), rows)


def get_preferences(annotations: Rows) -> list[float | None]:
    """
    Returns the preference for the model's output in each annotation.

    Args:
        annotations (`list[dict]`):
            From [`read_annotations`] or [`annotate`].

    Returns:
        `list[float]`: One value per entry, in [0, 1]. A draw is 0.5. AlpacaEval writes it as 0 or 1.5. The value is
        `None` if the entry has no valid preference (null, NaN, or another number outside [1, 2]).
    """
    values = []
    for row in annotations:
        value = row["preference"]
        value = 1.5 if value == 0 else value
        is_missing = value is None or math.isnan(value) or not 1 <= value <= 2
        values.append(None if is_missing else value - 1)
    return values


def leaderboard_row(annotations: Rows) -> dict[str, float]:
    """
    Computes the metrics of AlpacaEval's leaderboard, in its units.

    Args:
        annotations (`list[dict]`):
            Annotations of one model.

    Returns:
        `dict`: `win_rate`, `standard_error` and `discrete_win_rate` in percent. The counts `n_wins`, `n_wins_base`,
        `n_draws` and `n_total` exclude entries without a preference. `avg_length` is the mean length of the model's
        outputs in characters, rounded down.

    Raises:
        ValueError: If no entry has a preference.

    Reference:
        [`winrate.py` of
        AlpacaEval](https://github.com/tatsu-lab/alpaca_eval/blob/cd543a1/src/alpaca_eval/metrics/winrate.py).
    """
    values = np.array([value for value in get_preferences(annotations) if value is not None])
    if not len(values):
        raise ValueError("`annotations` has no preference. Let a judge compare the outputs first.")
    error = standard_error(values)
    return {
        "win_rate": 100 * float(values.mean()),
        "standard_error": None if error is None else 100 * error,
        "n_wins": int((values > 0.5).sum()),
        "n_wins_base": int((values < 0.5).sum()),
        "n_draws": int((values == 0.5).sum()),
        "n_total": len(values),
        "discrete_win_rate": 100 * preference_accuracy(values - 0.5),
        "avg_length": int(np.mean([len(row["output_2"]) for row in annotations])),
    }


def _read_rows(path: str | Path, columns: Sequence[str]) -> Rows:
    try:
        rows = read_rows(Path(expand_path(path)))
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}). Pass a JSON list of {list(columns)}.") from None
    if not rows:
        raise ValueError(f"{path} has no list of entries. Pass a JSON list of entries with {list(columns)}.")
    for number, row in enumerate(rows):
        _require_entry(f"{path} row {number}", row, columns)
    seen = set()
    for number, row in enumerate(rows):
        if row["instruction"] in seen:
            raise ValueError(f"{path} row {number} has the instruction of an earlier row. Keep one entry of each.")
        seen.add(row["instruction"])
    return rows


def _require_entry(name: str, row: Any, columns: Sequence[str]) -> None:
    missing = [column for column in columns if not isinstance(row, dict) or column not in row]
    if missing:
        raise ValueError(f"{name} lacks {missing}. Each entry needs {list(columns)}.")
    for column in columns:
        value = row[column]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, str) if column in TEXT_COLUMNS else value is None or is_number):
            raise ValueError(
                f"{name}: `{column}` is {str(value)[:60]!r}, but must be "
                f"{'text' if column in TEXT_COLUMNS else 'a number or null'}. Correct or drop the entry."
            )
