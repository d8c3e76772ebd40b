import re

import pytest

from trl_rlp.data.judges.language_model import JUDGE_TEMPLATE
from trl_rlp.data.judges.verdicts import find_labels, read_verdict


FOR_A = [
    "A",
    "**A**.",
    "[[A]]",
    "(A)",
    "A)",
    "A.",
    "Response A is better.",
    "Response A",
    "Option A.",
    "Answer: A",
    "The answer is A.",
    "A\n\nIt is right, and B is not.",
    "A\n\nResponse A is better than Response B because",
    "Response A is better than Response B.",
    "I think Response A is better because it is more accurate",
    "A because it is more accurate.",
    "The better one is A",
    "Preferred: A",
    "Preference: A",
    "Letter: A",
    "\\boxed{A}",
    "<answer>A</answer>",
    "<b>A</b>",
    "Response A, as it is more helpful",
    "A, since it answers",
    "Response A is better as it is less verbose",
    "Response A is better; it makes no errors",
    "The better response is: **A**",
    "I prefer A, since it is true.",
    "My choice is A.",
    "Winner: A",
    "A is better",
    "A wins.",
    "Final verdict: A",
    "So the best answer is A.",
    "Both answers are short.\n\nA",
    "<think>Not A, not B</think>A",
    "Response A is the better answer.",
    "Overall, Response A is better.",
    "The correct answer is A",
    "I'd pick A",
    "Better: A",
    "A: because it is right",
    "I would choose Response A because it",
    "The best response is A.",
]
FOR_NEITHER = [
    "Response A is the most helpful",
    "**Response A:**\n\nThis response is factually",
    "### Response A\n\nThis response",
    "Response A:\n- Pros: clear\n- Cons: wrong",
    "Response A\nIt gives a wrong date for",
    "A: The capital of",
    "**A**: incorrect, since the capital",
    "A) incorrect",
    "Response A is inaccurate, so the other response is better",
    "Response A is terrible; the other is better",
    "Response A is rude, so the second is better.",
    "Response A is too long. The other one is better",
    "Response A is shorter, which is usually better, yet it",
    "Response A is a direct answer. The best one should",
    "Response A is rarely better",
    "Response A is hardly better",
    "Response A is far from best",
    "Response A is good but could be better",
    "The weaker response is A.",
    "The inferior response is A",
    "The incorrect response is A",
    "The rejected response: A",
    "The losing answer is B",
    "Avoid option A.",
    "I reject response A",
    "Never choose A",
    "Both",
    "A and B are equal",
    "neither",
    "",
    "BAD",
    "A tie.",
    "Verdict: A tie.",
    "Answer: A draw",
    "A, a tie",
    "A better response would be longer.",
    "A.I. judges",
    "I cannot",
    "[[A>B]]",
    "It is not true that Response A is better",
    "Response A is worse.",
    "Response A is not better.",
    "Answer A isn't the better one.",
    "Answer A is wrong.",
    "A: both are equal",
    "A is better in tone, B is better in facts",
    "<think>\nA",
    "A or B",
    "Is A better?",
    "If brevity matters, A is better",
    "A: it is wrong",
    "A is better than nothing, but B is best",
    "A\nB",
]


@pytest.mark.parametrize("answer", FOR_A)
def test_a_clear_verdict_is_read(answer):
    assert read_verdict(answer) == "A"
    assert read_verdict(re.sub(r"\b[AB]\b", lambda letter: "BA"["AB".index(letter[0])], answer)) == "B"


@pytest.mark.parametrize("answer", FOR_NEITHER)
def test_headings_criticism_ties_and_articles_are_not_verdicts(answer):
    assert read_verdict(answer) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("2", "2"),
        ("2.", "2"),
        ("**Verdict**: 2", "2"),
        ("Response 2 is better than Response 1.", "2"),
        ('{"winner": 2}', "2"),
        ("[[2]]", "2"),
        ("A", None),
        ("1. It is clear.\n2. It is right.", None),
        ("The answer is 2. Response 1 says so.", None),
        ("Response 1: 7/10\nResponse 2: 8/10", None),
        ("1 and 2", None),
    ],
)
def test_numbers_are_read_if_the_question_uses_them(answer, expected):
    assert read_verdict(answer, ("1", "2")) == expected
    assert read_verdict(answer) == ("A" if answer == "A" else None)


@pytest.mark.parametrize(
    ("template", "labels"),
    [
        (JUDGE_TEMPLATE, ("A", "B")),
        ("{prompt}|{first}|{second}", ("A", "B")),
        ("{prompt}\nOutput (a): {first}\nOutput (b): {second}", ("A", "B")),
        ("1 or 2?\n{prompt}\n# Response 1\n{first}\n# Response 2\n{second}", ("1", "2")),
        ("Here are 2 responses to {prompt}. [1] {first} [2] {second}", ("1", "2")),
        ("Here are 2 responses to {prompt}: {first} {second}", ("A", "B")),
    ],
)
def test_the_labels_are_those_of_the_question(template, labels):
    assert find_labels(template) == labels
