import pytest
from datasets import Dataset

from trl_rlp.quickstart.question_outcome import describe_questions, label_accuracy, summarize_kinds


SAMPLES = Dataset.from_dict(
    {
        "prompt": ["1?", "2?", "3?", "4?"],
        "completions": [
            [" 4", " 4.", " 5", " 6"],  # half agree on a right answer
            [" Rome", " Oslo", " Bern", " Riga"],  # none agree
            [" yes", " yes", " yes.", " yes"],  # all agree on a wrong answer
            [" 7", " 7", " 7", " 8"],  # three agree on a wrong answer
        ],
        "finished": [[True] * 4] * 4,
        "answers": [["4", "four"], ["Oslo"], ["no"], ["9"]],
        "kind": ["sum", "capital", "yes or no", "sum"],
        "question": ["2 + 2", "Norway", "Is it", "4 + 5"],
    }
)
PREFERENCES = Dataset.from_dict(
    {
        "prompt": ["1?", "4?"],
        "chosen": [" 4", " 7"],
        "rejected": [" 6", " 8"],
        "sample_row": [0, 3],
    }
)


def test_describe_questions():
    first, second, third, fourth = describe_questions(SAMPLES, PREFERENCES, threshold=0.5)
    assert first == {
        "kind": "sum",
        "question": "2 + 2",
        "answer": "4",
        "accuracy": 0.5,
        "confidence": 0.5,
        "majority": "4",
        "majority_right": True,
        "status": "accepted",
        "chosen": "4",
        "chosen_right": True,
        "rejected": "6",
        "rejected_right": False,
    }
    assert (second["status"], second["confidence"], second["accuracy"]) == ("below γ", 0.25, 0.25)
    assert (third["status"], third["majority_right"]) == ("all agree", False)
    assert (fourth["status"], fourth["confidence"], fourth["chosen_right"]) == ("accepted", 0.75, False)


def test_kinds_are_sorted_by_accuracy():
    table = summarize_kinds(describe_questions(SAMPLES, PREFERENCES, threshold=0.5))
    assert [entry["kind"] for entry in table] == ["sum", "capital", "yes or no"]
    assert table[0] == {
        "kind": "sum",
        "questions": 2,
        "accuracy": 0.25,
        "confidence": 0.625,
        "majority_right": 0.5,
        "accepted": 2,
        "accepted_right": 1,
    }


def test_label_accuracy_counts_only_pairs_that_the_answers_decide():
    """Right over wrong, wrong over right, wrong over wrong, right over wrong: 3 pairs decided, 2 of them right."""
    pairs = Dataset.from_dict(
        {
            "chosen": [" 4", " 5", " 5", " 4."],
            "rejected": [" 5", " four", " 6", " 6"],
            "sample_row": [0, 0, 0, 0],
        }
    )
    assert label_accuracy(pairs, SAMPLES["answers"][:]) == {
        "pairs": 4,
        "decided": 3,
        "accuracy": pytest.approx(2 / 3),
        "neither_right": 1,
        "chosen_right": 0.5,
    }


def test_label_accuracy_is_none_if_no_pair_is_decided():
    pairs = Dataset.from_dict({"chosen": [" 5"], "rejected": [" 6"], "sample_row": [0]})
    assert label_accuracy(pairs, SAMPLES["answers"][:])["accuracy"] is None
