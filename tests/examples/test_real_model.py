"""The run on a real language model, with a tiny one in its place."""

import json
from pathlib import Path

import pytest

from tests.yes_or_no import QUESTIONS, yes_or_no_model


FOLDER = Path(__file__).parents[2] / "examples" / "laboratory"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_all_stages_run_and_the_tables_hold_all_seeds(tmp_path, monkeypatch, capsys):
    import real_model

    model = Path(yes_or_no_model(tmp_path / "model"))
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
    stage = json.loads((folder / "seed-0" / "labels" / "stage.json").read_text())["figures"]
    assert stage["spg"]["decided"] <= stage["spg"]["pairs"] <= 12
    epochs = {
        name: json.loads((folder / "seed-0" / name / "stage.json").read_text())["figures"]["epoch"]
        for name in ("r", "spg", "human pairs only")
    }
    assert epochs == {"r": 3, "spg": 3, "human pairs only": 3 * (1 + stage["spg"]["pairs"] / 12)}


def test_the_label_accuracy_is_worked_by_hand():
    """Of four pairs one has a right side twice and does not count; two of three choose the right one."""
    from datasets import Dataset
    from real_stages import label_accuracy

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
    found = label_accuracy(pairs, samples)
    assert (found["pairs"], found["decided"]) == (4, 3) and found["accuracy"] == pytest.approx(2 / 3)
    assert found["by_confidence"] == {"0.5": [0.0, 1], "0.9": [1.0, 2]}


@pytest.mark.parametrize("form", ["SVAMP.json", "svamp.jsonl"])
def test_svamp_s_answers_are_numbers_as_one_writes_them(tmp_path, form):
    import real_model

    rows = [
        {"Body": "I have 3.", "Question": "and 4?", "Answer": 7.0, "Type": "Addition"},
        {"Body": "", "Question": "1 of 2?", "Answer": 0.5, "Type": "Common-Division"},
        {"Body": "", "Question": "many?", "Answer": 22090603.0, "Type": "Subtraction"},
    ]
    path = tmp_path / form
    if form == "SVAMP.json":
        path.write_text(json.dumps(rows))
    else:
        rows = [{"question": f"{row['Body']} {row['Question']}".strip(), **row} for row in rows]
        rows = [{key.lower(): row[key] for key in ("question", "Answer", "Type")} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = real_model.questions_of("svamp", path)
    assert [question.question for question in found] == ["I have 3. and 4?", "1 of 2?", "many?"]
    assert [(question.kind, question.answers) for question in found] == [
        ("Addition", ("7",)),
        ("Common", ("0.5",)),
        ("Subtraction", ("22090603",)),
    ]
    with pytest.raises(SystemExit, match="needs --svamp SVAMP.json"):
        real_model.questions_of("svamp", None)
