"""AlpacaEval's files: outputs of a model, and annotations of who is better, in and out."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.judges.judge import Judge, judge_pairs
from trl_rlp.data.validation import prompt_text, require_columns
from trl_rlp.evaluation.reward_metrics import preference_accuracy, standard_error


Rows = list[dict[str, Any]]


def read_model_outputs(path: str | Path) -> Rows:
    """
    Reads a model's outputs.

    Args:
        path (`str` or `Path`):
            `model_outputs.json`: a JSON list, each entry with `instruction` and `output` as text, and usually
            `generator` and `dataset`.

    Returns:
        `list[dict]`: the entries.

    Raises:
        ValueError: if it is no such file, is empty, or has an instruction twice.
    """
    return _read(path, ("instruction", "output"))


def write_model_outputs(path: str | Path, outputs: Dataset, generator: str) -> None:
    """
    Writes outputs in the form that `alpaca_eval --model_outputs` reads.

    Args:
        path (`str` or `Path`):
            The file.
        outputs (`datasets.Dataset`):
            `prompt` (text or messages; of messages the contents are written, one a line), and `completion`, or
            `completions`, of which the first is taken (text or messages, likewise). A column `dataset` is kept.
        generator (`str`):
            The policy's name.

    Raises:
        ValueError: if a column is missing, there is no row, or a prompt comes twice.
    """
    column = "completion" if "completion" in outputs.column_names else "completions"
    require_columns(outputs, ["prompt", column], "outputs")
    rows = [
        {
            **({"dataset": row["dataset"]} if "dataset" in row else {}),
            "instruction": prompt_text(row["prompt"]),
            "output": prompt_text(row[column] if column == "completion" else row[column][0]),
            "generator": generator,
        }
        for row in outputs
    ]
    if len({row["instruction"] for row in rows}) < len(rows):
        raise ValueError("`outputs` has a prompt twice, which AlpacaEval cannot tell apart. Keep one row of each.")
    write_rows(path, rows)


def annotate(outputs: Rows, reference_outputs: Rows, judge: Judge, annotator: str) -> Rows:
    """
    Lets a judge compare a model's outputs with a reference's.

    Args:
        outputs (`list[dict]`):
            From [`read_model_outputs`].
        reference_outputs (`list[dict]`):
            The reference's, of the same instructions in any order.
        judge (`Callable`):
            See [`judge`]; how it deals with the order of the two is its own affair.
        annotator (`str`):
            Its name.

    Returns:
        `list[dict]`: annotations in AlpacaEval's form, in the reference's order: `output_1` is the reference's,
        `output_2` the model's, and `preference`, from 1 to 2, is one more than how far the model's is preferred. Equal
        outputs are a draw that no judge is asked about.

    Raises:
        ValueError: if the instructions differ, or the judge answers outside [0, 1].
    """
    require_same_instructions(outputs, reference_outputs)
    by_instruction = {row["instruction"]: row for row in outputs}
    pairs = [(reference, by_instruction[reference["instruction"]]) for reference in reference_outputs]
    asked = [pair for pair in pairs if pair[0]["output"] != pair[1]["output"]]
    verdicts = judge_pairs(
        judge,
        [reference["instruction"] for reference, _ in asked],
        [model["output"] for _, model in asked],
        [reference["output"] for reference, _ in asked],
    )
    answers = iter(verdicts)
    return [
        {
            "instruction": reference["instruction"],
            "output_1": reference["output"],
            "generator_1": reference.get("generator", "reference"),
            "output_2": model["output"],
            "generator_2": model.get("generator", "model"),
            **({"dataset": reference["dataset"]} if "dataset" in reference else {}),
            "annotator": annotator,
            "preference": 1.5 if reference["output"] == model["output"] else 1.0 + next(answers),
        }
        for reference, model in pairs
    ]


def require_same_instructions(outputs: Rows, reference_outputs: Rows, name: str = "outputs") -> None:
    """
    Checks that two sets of outputs are for the same instructions.

    Args:
        outputs (`list[dict]`):
            The model's.
        reference_outputs (`list[dict]`):
            The reference's.
        name (`str`, *optional*, defaults to `"outputs"`):
            Name of the first argument, for the message.

    Raises:
        ValueError: if an instruction is in one of them only, or twice.
    """
    found, expected = ({row["instruction"] for row in rows} for rows in (outputs, reference_outputs))
    for side, rows, distinct in ((name, outputs, found), ("reference_outputs", reference_outputs, expected)):
        if len(distinct) < len(rows):
            raise ValueError(f"`{side}` has an instruction twice. Keep one output of each.")
    lacking = {name: sorted(expected - found), "reference_outputs": sorted(found - expected)}
    total = len(found | expected)
    words = [
        f"`{side}` lacks {len(rows)} of the {total} instructions, such as {rows[0][:60]!r}"
        for side, rows in lacking.items()
        if rows
    ]
    if words:
        raise ValueError(f"{' and '.join(words)}. Compare outputs for the same prompts.")


def read_annotations(path: str | Path) -> Rows:
    """
    Reads annotations.

    Args:
        path (`str` or `Path`):
            `annotations.json`: a JSON list, each entry with `instruction`, `output_1` (the reference's), `output_2`
            (the model's) and `preference`.

    Returns:
        `list[dict]`: the entries.

    Raises:
        ValueError: if it is no such file or is empty.
    """
    return _read(path, ("instruction", "output_1", "output_2", "preference"))


def write_rows(path: str | Path, rows: Rows) -> None:
    """
    Writes outputs or annotations.

    Args:
        path (`str` or `Path`):
            The file.
        rows (`list[dict]`):
            Its entries.
    """
    Path(path).write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def preferences_of(annotations: Rows) -> list[float | None]:
    """
    Gives how far the model's output is preferred.

    Args:
        annotations (`list[dict]`):
            From [`read_annotations`] or [`annotate`].

    Returns:
        `list[float]`: one an entry, in [0, 1]; one half for AlpacaEval's two ways of writing a draw, 0 and 1.5; `None`
        where it has none (null, NaN, or a number that it does not count).
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
    Gives the figures of AlpacaEval's leaderboard, in its units.

    Args:
        annotations (`list[dict]`):
            Of one model.

    Returns:
        `dict`: `win_rate`, `standard_error` and `discrete_win_rate` in percent; `n_wins`, `n_wins_base`, `n_draws` and
        `n_total`, which leaves out entries without a preference; `avg_length` of the model's outputs, in characters,
        cut to a whole number.

    Raises:
        ValueError: if there is no preference.

    Reference:
        https://github.com/tatsu-lab/alpaca_eval/blob/cd543a1/src/alpaca_eval/metrics/winrate.py
    """
    values = np.array([value for value in preferences_of(annotations) if value is not None])
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


TEXTS = ("instruction", "output", "output_1", "output_2")


def _read(path: str | Path, columns: Sequence[str]) -> Rows:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}). Pass a JSON list of {list(columns)}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Pass a JSON list of entries with {list(columns)}.") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no list of entries. Pass a JSON list of entries with {list(columns)}.")
    for number, row in enumerate(rows):
        missing = [name for name in columns if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path} row {number} lacks {missing}. Each entry needs {list(columns)}.")
        for name in columns:
            value = row[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (isinstance(value, str) if name in TEXTS else value is None or is_number):
                raise ValueError(
                    f"{path} row {number}: `{name}` is {str(value)[:60]!r}, but must be "
                    f"{'text' if name in TEXTS else 'a number or null'}. Correct or drop the entry."
                )
    seen = set()
    for number, row in enumerate(rows):
        if row["instruction"] in seen:
            raise ValueError(f"{path} row {number} has the instruction of an earlier row. Keep one entry of each.")
        seen.add(row["instruction"])
    return rows
