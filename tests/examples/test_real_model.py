"""Tests of the experiment on a real language model, with a tiny model instead."""

import json
from pathlib import Path

import pytest

from tests.yes_or_no import QUESTIONS, train_yes_or_no_model


FOLDER = Path(__file__).parents[2] / "examples" / "laboratory"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_all_stages_run_and_the_tables_contain_all_seeds(tmp_path, monkeypatch, capsys):
    import real_model

    model = Path(train_yes_or_no_model(tmp_path / "model"))
    sizes = {"demonstrations": 4, "preferences": 12, "unlabeled": 12, "heldout": 8}
    monkeypatch.setattr(real_model, "load_smollm2", lambda: model)
    monkeypatch.setattr(real_model, "load_questions", lambda: QUESTIONS)
    monkeypatch.setattr(real_model, "SIZES", {"own": sizes})
    words = ["real_model.py", "--data", "own", "--seeds", "0,1", "--output_dir", str(tmp_path / "runs")]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", words)
        real_model.main()
    folder = tmp_path / "runs" / "smollm2-own"
    tables = (folder / "summary.md").read_text()
    assert tables.strip() in capsys.readouterr().out
    for text in ("2 seeds: 0, 1.", "| select_all |", "| rlaif |", "| uml, cosine |", "best of 10 − r"):
        assert text in tables, text
    labels = json.loads((folder / "seed-0" / "labels" / "stage.json").read_text())["metrics"]
    assert labels["spg"]["decided"] <= labels["spg"]["pairs"] <= 12
    epochs = {
        name: json.loads((folder / "seed-0" / name / "stage.json").read_text())["metrics"]["epoch"]
        for name in ("r", "spg", "human pairs only")
    }
    assert (epochs["r"], epochs["spg"]) == (3, 3)
    # As many steps as with the synthetic pairs. The metrics are those of the last log, which may be earlier.
    assert epochs["human pairs only"] == pytest.approx(3 * (1 + labels["spg"]["pairs"] / 12), abs=1)
    assert epochs["human pairs only"] > 3


def test_label_accuracy_equals_numbers_by_hand():
    """Of four pairs, one has two correct sides and does not count. Two of the other three choose the correct side."""
    from datasets import Dataset
    from real_stages import evaluate_labels

    samples = Dataset.from_dict({"answers": [["yes"], ["no"], ["yes"], ["yes"]]})
    pairs = Dataset.from_list(
        [
            {
                "sample_row": row,
                "chosen": chosen,
                "rejected": rejected,
                "confidence": confidence,
                "chosen_finished": True,
                "rejected_finished": True,
            }
            for row, (chosen, rejected, confidence) in enumerate(
                [(" yes", " no", 0.9), (" yes", " no", 0.6), (" yes", " yes!", 0.5), ("Yes.", "no", 1.0)]
            )
        ]
    )
    metrics = evaluate_labels(pairs, samples)
    assert (metrics["pairs"], metrics["decided"]) == (4, 3) and metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["by_confidence"] == {"0.5": [0.0, 1], "0.9": [1.0, 2]}


@pytest.mark.parametrize("filename", ["SVAMP.json", "svamp.jsonl"])
def test_answers_of_svamp_are_formatted_as_plain_numbers(tmp_path, filename):
    import real_model

    rows = [
        {"Body": "I have 3.", "Question": "and 4?", "Answer": 7.0, "Type": "Addition"},
        {"Body": "", "Question": "1 of 2?", "Answer": 0.5, "Type": "Common-Division"},
        {"Body": "", "Question": "many?", "Answer": 22090603.0, "Type": "Subtraction"},
    ]
    path = tmp_path / filename
    if filename == "SVAMP.json":
        path.write_text(json.dumps(rows))
    else:
        rows = [{"question": f"{row['Body']} {row['Question']}".strip(), **row} for row in rows]
        rows = [{key.lower(): row[key] for key in ("question", "Answer", "Type")} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = real_model.load_dataset_questions("svamp", path)
    assert [question.question for question in questions] == ["I have 3. and 4?", "1 of 2?", "many?"]
    assert [(question.kind, question.answers) for question in questions] == [
        ("Addition", ("7",)),
        ("Common", ("0.5",)),
        ("Subtraction", ("22090603",)),
    ]
    with pytest.raises(SystemExit, match="needs --svamp SVAMP.json"):
        real_model.load_dataset_questions("svamp", None)
