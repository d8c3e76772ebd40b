from collections import Counter

import pytest

from trl_rlp.data.normalization import normalize_answer, normalize_text
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.quickstart.questions import (
    PARTS,
    WRONG_MAJORITY_KINDS,
    Question,
    demonstration_dataset,
    load_questions,
    prompt_dataset,
    split_questions,
)


@pytest.fixture(scope="module")
def questions():
    return load_questions()


def test_questions_are_unique_and_of_many_kinds(questions):
    kinds = Counter(entry.kind for entry in questions)
    assert len(questions) >= 300
    assert len(kinds) >= 15 and min(kinds.values()) >= 10
    assert set(WRONG_MAJORITY_KINDS) <= set(kinds)
    assert len({normalize_text(entry.question) for entry in questions}) == len(questions)


def test_answers_are_short_distinct_and_correct(questions):
    for entry in questions:
        normalized = [normalize_answer(answer) for answer in entry.answers]
        assert all(normalized) and len(set(normalized)) == len(normalized), entry
        assert len(entry.answers[0]) <= 25, entry
        first = entry.answers[0]
        assert all(is_correct(text, entry.answers) for text in (f" {first}.", first[0].upper() + first[1:])), entry


@pytest.mark.parametrize(
    ("kind", "template", "compute"),
    [
        ("sum", "What is {} plus {}?", lambda a, b: a + b),
        ("times", "What is {} times {}?", lambda a, b: a * b),
        ("minus", "What is {} minus {}?", lambda a, b: a - b),
        ("larger or smaller", "Which is smaller, {} or {}?", min),
    ],
)
def test_arithmetic_answers_are_right(questions, kind, template, compute):
    checked = 0
    for entry in questions:
        numbers = [int(word.strip("?,")) for word in entry.question.split() if word.strip("?,").isdigit()]
        if entry.kind == kind and len(numbers) == 2 and entry.question == template.format(*numbers):
            assert entry.answers[0] == str(compute(*numbers)), entry
            checked += 1
    assert checked >= 6


def test_every_question_is_in_exactly_one_part(questions):
    parts = split_questions(questions)
    assert tuple(parts) == PARTS
    assert Counter(entry for part in parts.values() for entry in part) == Counter(questions)
    sizes = {part: len(entries) / len(questions) for part, entries in parts.items()}
    assert sizes == pytest.approx(
        {"demonstrations": 0.2, "preferences": 0.3, "unlabeled": 0.3, "heldout": 0.2}, abs=0.04
    )


def test_the_first_half_of_each_part_has_the_same_mix_of_kinds(questions):
    kinds = {entry.kind for entry in questions}
    for part, entries in split_questions(questions).items():
        assert {entry.kind for entry in entries} == kinds, part
        half = Counter(entry.kind for entry in entries[: len(entries) // 2])
        whole = Counter(entry.kind for entry in entries)
        assert all(abs(half[kind] - whole[kind] / 2) <= 1 for kind in kinds), part


def test_the_split_depends_on_its_seed_and_not_on_the_order_of_the_kinds(questions):
    assert split_questions(questions) == split_questions(questions)
    assert split_questions(questions, seed=1) != split_questions(questions, seed=2)
    by_kind = sorted(questions, key=lambda entry: entry.kind, reverse=True)
    assert split_questions(by_kind) == split_questions(questions)


def test_demonstrations_contain_the_answer_and_prompts_do_not():
    entries = [Question("sum", "What is 2 plus 2?", ("4", "four"))]
    assert prompt_dataset(entries)[0] == {
        "prompt": "Question: What is 2 plus 2?\nAnswer:",
        "answers": ["4", "four"],
        "kind": "sum",
        "question": "What is 2 plus 2?",
    }
    assert demonstration_dataset(entries)[0] == {
        "prompt": "Question: What is 2 plus 2?\nAnswer:",
        "completion": " 4",
    }
