import json

import pytest
import torch

from tests.servers import needs_serving, run_server
from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.judges.server import ServerJudge


PROMPTS = ["2 + 2?", [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It was"}]]


def set_answer(fake, answer):
    """Makes the server answer each question with `answer(question)`."""

    def respond(request, number):
        choice = {"message": {"content": answer(request["messages"][0]["content"])}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}), {}

    fake.respond = respond


def find_label(text, question):
    """Returns the label, A or B, of the completion that contains `text`."""
    return "A" if text in question.split("Response B:")[0].split("Response A:")[1] else "B"


def test_a_completion_wins_if_it_is_better_in_both_orders(fake):
    set_answer(fake, lambda question: find_label("good", question))
    judge = ServerJudge(fake.url, "judge")
    assert judge(["?"] * 2, ["good", "bad"], ["bad", "good"]) == [1.0, 0.0]
    assert (judge.asked, judge.unreadable) == (4, 0)
    assert set(fake.paths) == {"/v1/chat/completions"}
    request = fake.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge", 0.0, 16)


@pytest.mark.parametrize("letter", ["A", "B"])
def test_answers_that_depend_on_the_position_only_are_ties(fake, letter):
    set_answer(fake, lambda question: letter)
    assert ServerJudge(fake.url, "judge")(["?"], ["good"], ["bad"]) == [0.5]


def test_the_template_is_filled_with_whole_turns(fake):
    set_answer(fake, lambda question: "A")
    ServerJudge(fake.url, "judge", template="{prompt}|{first}|{second}")(PROMPTS, ["4", " Ada"], ["5", " Bob"])
    questions = {request["messages"][0]["content"] for request in fake.requests}
    assert questions == {"2 + 2?|4|5", "2 + 2?|5|4", "Who?|It was Ada|It was Bob", "Who?|It was Bob|It was Ada"}


@pytest.mark.parametrize(("answer", "expected"), [("Response {} is better.", 1.0), ("Response {} is worse.", 0.5)])
def test_an_unreadable_answer_is_a_tie(fake, answer, expected):
    set_answer(fake, lambda question: answer.format(find_label("good", question)))
    judge = ServerJudge(fake.url, "judge", tolerance=1.0)
    assert judge(["?"], ["good"], ["bad"]) == [expected]
    assert judge.unreadable == (0 if expected == 1.0 else 2)


def test_a_message_without_content_is_counted_as_unreadable(fake):
    set_answer(fake, lambda question: None)
    judge = ServerJudge(fake.url, "judge", tolerance=1.0)
    assert judge(["?"], ["good"], ["bad"]) == [0.5] and judge.unreadable == 2


def test_unreadable_answers_are_counted_and_more_than_the_tolerance_is_an_error(fake, caplog):
    set_answer(fake, lambda question: "I cannot" if "odd" in question else find_label("good", question))
    completions = [f"good {row}" for row in range(4)]
    judge = ServerJudge(fake.url, "judge", tolerance=0.25)
    assert judge(["odd", "?", "?", "?"], completions, ["bad"] * 4) == [0.5, 1.0, 1.0, 1.0]
    assert (judge.asked, judge.unreadable) == (8, 2)
    assert "2 of 8 answers of the judge name neither A nor B alone, such as 'I cannot'" in caplog.text
    with pytest.raises(ValueError, match="4 of 8 answers .* more than `tolerance`=0.25. Use another model"):
        judge(["odd", "odd", "?", "?"], completions, ["bad"] * 4)
    assert (judge.asked, judge.unreadable) == (16, 6)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"template": "{prompt} {first}"}, r"`template` lacks \['\{second\}'\]"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
        ({"max_concurrency": 0}, "`max_concurrency` must be at least 1"),
        ({"max_retries": -1}, "`max_retries` must be at least 0"),
        ({"tolerance": 1.5}, r"`tolerance` is a share of the answers, in \[0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_errors(setting, match):
    with pytest.raises(ValueError, match=match):
        ServerJudge("http://127.0.0.1:1/v1", "judge", **setting)


def test_a_refused_pair_has_no_probability(fake):
    set_answer(fake, lambda question: find_label("good", question))
    respond = fake.respond
    fake.respond = lambda request, number: (
        (400, "too long", {}) if "long" in request["messages"][0]["content"] else respond(request, number)
    )
    judge = ServerJudge(fake.url, "judge")
    assert judge(["?", "long?", "?"], ["good", "good", "bad"], ["bad", "bad", "good"]) == [1.0, None, 0.0]
    assert (judge.asked, judge.unreadable, judge.refused) == (4, 0, 1)


@pytest.mark.parametrize(
    "other", [{"model": "other"}, {"extra_body": {"top_k": 1}}, {"template": "{prompt}{first}{second}"}]
)
def test_answers_are_kept_for_the_same_judge_and_question_only(fake, tmp_path, other):
    set_answer(fake, lambda question: "A")
    settings = {"model": "judge", "cache": tmp_path / "answers.jsonl"}
    for _ in range(2):
        judge = ServerJudge(fake.url, **settings)
        assert judge(["?"], ["good"], ["bad"]) == [0.5] and judge.asked == 2
        assert len(fake.requests) == 2
    ServerJudge(fake.url, **{**settings, **other})(["?"], ["good"], ["bad"])
    assert len(fake.requests) == 4


@needs_serving
def test_a_real_server_answers_in_both_orders(tmp_path):
    """
    The model answers A after x, B after y and ? after ?. The question ends with the completion called A. The letters
    end the answer, and ? does not.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model = tiny_causal_lm(tokenizer, max_position_embeddings=1024)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight.zero_()
        eos = tokenizer.eos_token
        for index, (last, answer) in enumerate(("xA", "yB", "??", ("A", eos), ("B", eos))):
            model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(last), index] = 1.0
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(answer), index] = 1.0
    save(model, tokenizer, tmp_path)
    with run_server(tmp_path) as url:
        judge = ServerJudge(
            url, str(tmp_path), template="{prompt}: B is {second}, A is {first}", max_tokens=3, tolerance=0.5
        )
        assert judge(["2 + 2"] * 3, ["4 x", "5 y", "6 x"], ["5 y", "4 x", "7 x"]) == [1.0, 0.0, 0.5]
        assert (judge.asked, judge.unreadable) == (6, 0)
        assert judge(["2 + 2"], ["4 x"], ["5 ?"]) == [0.5] and judge.unreadable == judge.cut == 1
        with pytest.raises(
            ValueError, match="2 of 2 answers .* name neither A nor B alone .2 were cut by the token limit.,"
        ):
            judge(["2 + 2"], ["4 ?"], ["5 ?"])
