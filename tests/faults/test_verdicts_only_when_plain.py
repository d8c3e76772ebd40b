"""A judge's answer counts as a verdict only if it is one: complete, and plainly for one of the two completions."""

import json
import re

import pytest

from tests.servers import FakeServer
from trl_rlp.data.judges.server import ServerJudge
from trl_rlp.data.judges.verdicts import read_verdict


PLAIN = [
    "B",
    "B.",
    "B)",
    "(b)",
    "b",
    "**B**",
    "*B*",
    "`B`",
    '"B"',
    "“B”",
    "[[B]]",
    r"\boxed{B}",
    r"$\boxed{\text{B}}$",
    "<answer>B</answer>",
    "<answer>\nB\n</answer>",
    "**Verdict**: B",
    "**Verdict: B**",
    "Verdict - B",
    "Verdict：B",
    "Final answer: `B`",
    "Better response: B",
    "Here is my verdict: B",
    "1. **Verdict**: B",
    "### Verdict\n\nResponse B",
    "## Final verdict: B",
    "Verdict:\n\n**B**",
    "**Analysis**\n- A: wrong sum\n- B: right sum\n\n**Verdict**\nB",
    "| Criterion | Better |\n|---|---|\n| Tone | A |\n| **Verdict** | **B** |",
    '{"verdict": "B"}',
    '```json\n{"verdict": "B"}\n```',
    'My verdict:\n```json\n{"reasoning": "A is longer, but B is right.", "winner": "Response B"}\n```',
    '{\n  "analysis": {"A": "wrong", "B": "right"},\n  "final_verdict": "B"\n}',
    "Output (b)",
    "Output (b) is better.",
    "‘B’",
    "«B»",
    "B. Response B answers the question.",
    "B. It is more complete.",
    "A. It is wrong.\nB. It is right.\n\nVerdict: B",
    "After comparing both, my final verdict is: [[B]]",
    "Which response is better?\n\nB",
    "Verdict: ~~A~~ B",
    "Response B is the clear winner.",
    "I would say B is better.",
    "verdict: B\nreason: it is more complete",
    "B\n\nIt has fewer errors than A.",
    "B\n\nResponse B outperforms Response A.",
    "Option B.",
    "Response B",
    "**B**, because it is right.",
    "So, B.",
    "Thus, the winner is Assistant B.",
    "My verdict is Output (b), since it follows the instruction.",
    "The better response is **Response B**.",
    "I prefer Response B over Response A.",
    "Verdict: Response B is better because it is complete.",
    "In conclusion, Response B is better because it gives the right year.",
    "Overall, I think that Response B is the better answer.",
    "B\n\nResponse A contains an error in the date.",
    "Answer: B\n\nExplanation: the sum is 4.",
    "Response A is polite. Response B is right.\n\nVerdict: B",
    "A is better in tone. B is better in facts.\n\n**Final verdict: B**",
    "It is close, and at first neither stands out.\n\nFinal answer: B",
    "Both are polite, but only one is right. [[B]]",
    "<think>A is better. Wait, no.</think>\n\nB",
]
TRAPS = {
    "a concession": [
        "Although Response A is better in terms of style and of the way it is",
        "While A is better in tone",
        "While A is better in tone, B is right.",
        "A is better in tone, B in facts",
        "A is better in tone.",
        "Response A is more accurate.",
        "Response A is better; but B is right",
        "A, because it is polite, but B is right",
        "Verdict: A, but B is close",
    ],
    "a negation": [
        "A is not better",
        "Response A is not the better one.",
        "Not A",
        "Verdict: not A",
        "It is not [[A]]",
        "Nobody would say that Response A is better.",
        "~~A~~",
        "A\nis worse",
    ],
    "a doubt": [
        "I might say A",
        "Probably A.",
        "A?",
        "A...",
        "A, I guess",
        "I am not sure, but A",
        "A. I guess.",
        "It is hard to say. A",
        "Response A seems better.",
        "Response A could be better",
        "If tone matters, A is better.",
        "A is better if you want details.",
    ],
    "a comparison with something else": [
        "A is better than expected",
        "Response A is better\nthan nothing",
        "A is better than most answers",
        "Response A would be better with a source.",
        "Response A was better",
    ],
    "criticism": [
        "The worse response is A.",
        "Worst:\nA",
        "Worse response: A",
        "Which one is worse?\nA",
        r"The worse one: \boxed{A}",
    ],
    "a tie": [
        "A tie.",
        "It is a tie.",
        "Verdict: A tie",
        "A and B are equally good.",
        "A because both are equal",
        "A, because I had to pick one, and both are identical",
        "Verdict: A\n\nConfidence: 50% (a coin flip)",
        "Both A and B are good.",
        "neither",
        "Neither A nor B",
        '{"verdict": "tie"}',
        "[[A=B]]",
    ],
    "both": [
        "A or B",
        "Verdict: A/B",
        "Ranking: A > B",
        "1. A\n2. B",
        "A. It is wrong.\nB. It is right.",
        "A. Wrong. B. Right.",
        "Accuracy: A\nTone: B",
        '{"verdict": "A", "verdict": "B"}',
        '{"verdict": "A"}\n{"verdict": "B"}',
        '{"winner": "A", "better": "B"}',
        '{"verdict": "A or B"}',
    ],
    "a quotation": [
        'You asked me to answer "A" or "B".',
        'The criteria say: "Response A is better if it is factual."',
        "> Response A is better.",
        'For example {"verdict": "A"} means the first.',
        "Some say Response A is better.",
    ],
    "the article": [
        'The missing article is "a".',
        'The answer is "a", not "an".',
        "A better answer would name the year.",
        "a better answer is needed",
    ],
    "the answer to the prompt, or a grade": [
        "The correct answer is A. Response B says so.",
        "The answer is A, so Response B is right.",
        "Grade: A",
        "Response B gets an A",
    ],
    "a changed mind": [
        "A is better. Wait, B gives the right year.",
        "A\n\nActually, no. The other one is right.",
        "A\n\nHowever, B is more accurate.",
        "A\n\nWhile A is polite, B is right, so B.",
        "A\n\nThe second response is better.",
        "Verdict: A\n\nOn second thought, verdict: B",
        "Response A is better. In the end, I prefer the facts of B.",
        "A\n\nEdit: I misread the question. It should be B.",
        "A\nOops, B.",
        "A is better. It fails the task, so B.",
        "A\n\nI said A, but I mean B.",
        "A is better. My mistake: it is B.",
        "Verdict: A\n\nJust kidding.",
        "Verdict: A\n\nUpdate: B",
        "Verdict: A\n\nI retract this.",
        "Verdict: A\n\nI apologize, I mixed them up.",
        "Verdict: A\n\nLet me reconsider. Response B gives the right year.",
        "Verdict: A\n\n(Upon closer inspection, Response B has the right date.)",
        "Verdict: A\n\nNow I have changed my mind.",
        "Verdict: A\n\nThe above is wrong, B.",
    ],
    "a refusal": ["I cannot compare these responses.", "As an AI, I have no preference.", "I can't choose. A", ""],
    "another language": [
        "Antwort A ist nicht besser.",
        "Antwort A ist besser",
        "La respuesta A no es mejor",
        "A mi juicio, las dos son malas.",
        "A 和 B 一样好",
    ],
    "a part": [
        '{"verdict": "A"',
        "<think>A",
        "Response A:",
        "**Response A**\n\nIt is clear.",
        "A:\n- clear\n\nB:\n- wrong",
    ],
}


def swap_labels(text):
    """Exchanges A and B, also small ones that are no article."""
    swapped = {"A": "B", "B": "A", "a": "b", "b": "a"}
    return re.sub(r"(?<![^\W_])(?:[AB]|b)(?![^\W_])", lambda match: swapped[match[0]], text)


def answer_with(fake, text, finish_reason="stop"):
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    fake.respond = lambda request, number: (200, json.dumps({"choices": [choice]}), {})


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.mark.parametrize("answer", PLAIN)
def test_a_plain_verdict_is_read_in_any_markup(answer):
    """A judge answered in Markdown, JSON or LaTeX. Its verdict is read, for both labels."""
    assert read_verdict(answer) == "B"
    assert read_verdict(swap_labels(answer)) == "A"


@pytest.mark.parametrize(("kind", "answer"), [(kind, answer) for kind, answers in TRAPS.items() for answer in answers])
def test_anything_else_is_no_verdict(kind, answer):
    """A judge conceded, doubted, quoted or changed its mind. A wrong verdict is worse than an unreadable answer."""
    assert read_verdict(answer) is None


def test_half_of_the_answers_are_traps():
    traps = sum(len(answers) for answers in TRAPS.values())
    assert len(PLAIN) >= 30 and traps >= 30 and traps >= len(PLAIN)


@pytest.mark.parametrize("text", ["A", "Response A is better", "Verdict: A", "Although A is better in tone"])
def test_an_answer_that_the_limit_cut_is_no_verdict(fake, text, caplog):
    """
    A judge needed more than `max_tokens`. Its next words could have been "in tone, B is right". The answers are
    counted, and the log says why.
    """
    answer_with(fake, text, finish_reason="length")
    judge = ServerJudge(fake.url, "judge", tolerance=1.0)
    assert judge(["?"], ["good"], ["bad"]) == [0.5]
    assert (judge.asked, judge.unreadable, judge.cut) == (2, 2, 2)
    assert "2 of 2 answers of the judge name neither A nor B alone (2 were cut by the token limit)" in caplog.text


def test_the_form_that_the_question_asks_for_is_read(fake):
    """A template calls the completions 1 and 2. The judge answers with these numbers."""

    def respond(request, number):
        question = request["messages"][0]["content"]
        label = "1" if question.index("good") < question.index("bad") else "2"
        choice = {"message": {"content": f"**Verdict**: Response {label}"}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}), {}

    fake.respond = respond
    template = "{prompt}\n\nResponse 1: {first}\n\nResponse 2: {second}\n\nWhich is better, 1 or 2?"
    judge = ServerJudge(fake.url, "judge", template=template, tolerance=0.0)
    assert judge(["?", "?"], ["good", "bad"], ["bad", "good"]) == [1.0, 0.0]
