import json

import pytest
import torch

from tests.servers import needs_serving, serving
from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.judges.server_judge import ServerJudge


PROMPTS = ["2 + 2?", [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It was"}]]


def answering(fake, answer):
    """Lets the server answer a question by `answer(question)`."""

    def respond(request, number):
        choice = {"message": {"content": answer(request["messages"][0]["content"])}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}), {}

    fake.respond = respond


def place_of(text, question):
    """A or B: where the question shows an output."""
    return "A" if text in question.split("Response B:")[0].split("Response A:")[1] else "B"


def test_an_output_wins_that_is_better_in_both_orders(fake):
    answering(fake, lambda question: place_of("good", question))
    judge = ServerJudge(fake.url, "judge")
    assert judge(["?"] * 2, ["good", "bad"], ["bad", "good"]) == [1.0, 0.0]
    assert (judge.asked, judge.unreadable) == (4, 0)
    assert set(fake.paths) == {"/v1/chat/completions"}
    request = fake.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge", 0.0, 16)


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_hears_nothing_but_position_gives_draws(fake, letter):
    answering(fake, lambda question: letter)
    assert ServerJudge(fake.url, "judge")(["?"], ["good"], ["bad"]) == [0.5]


def test_the_question_is_the_template_s_with_whole_turns(fake):
    answering(fake, lambda question: "A")
    ServerJudge(fake.url, "judge", template="{prompt}|{first}|{second}")(PROMPTS, ["4", " Ada"], ["5", " Bob"])
    asked = {request["messages"][0]["content"] for request in fake.requests}
    assert asked == {"2 + 2?|4|5", "2 + 2?|5|4", "Who?|It was Ada|It was Bob", "Who?|It was Bob|It was Ada"}


@pytest.mark.parametrize(("answer", "found"), [("Response {} is better.", 1.0), ("Response {} is worse.", 0.5)])
def test_what_cannot_be_read_is_a_draw(fake, answer, found):
    answering(fake, lambda question: answer.format(place_of("good", question)))
    judge = ServerJudge(fake.url, "judge", tolerance=1.0)
    assert judge(["?"], ["good"], ["bad"]) == [found]
    assert judge.unreadable == (0 if found == 1.0 else 2)


def test_a_message_without_content_is_counted(fake):
    answering(fake, lambda question: None)
    judge = ServerJudge(fake.url, "judge", tolerance=1.0)
    assert judge(["?"], ["good"], ["bad"]) == [0.5] and judge.unreadable == 2


def test_unreadable_answers_are_counted_and_an_error_past_the_tolerance(fake, caplog):
    answering(fake, lambda question: "I cannot" if "odd" in question else place_of("good", question))
    outputs = [f"good {row}" for row in range(4)]
    judge = ServerJudge(fake.url, "judge", tolerance=0.25)
    assert judge(["odd", "?", "?", "?"], outputs, ["bad"] * 4) == [0.5, 1.0, 1.0, 1.0]
    assert (judge.asked, judge.unreadable) == (8, 2)
    assert "2 of 8 answers of the judge name neither A nor B alone, such as 'I cannot'" in caplog.text
    with pytest.raises(ValueError, match="4 of 8 answers .* more than `tolerance`=0.25. Use another model"):
        judge(["odd", "odd", "?", "?"], outputs, ["bad"] * 4)
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
def test_bad_settings_are_named(setting, match):
    with pytest.raises(ValueError, match=match):
        ServerJudge("http://127.0.0.1:1/v1", "judge", **setting)


@needs_serving
def test_a_real_server_is_asked_in_both_orders(tmp_path):
    """A model that reads one token says A after x, B after y, ? after ?; the output called A comes last."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model = tiny_causal_lm(tokenizer, max_position_embeddings=1024)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight.zero_()
        for place, (read, said) in enumerate(("xA", "yB", "??")):
            model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(read), place] = 1.0
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(said), place] = 1.0
    save(model, tokenizer, tmp_path)
    with serving(tmp_path) as url:
        judge = ServerJudge(
            url, str(tmp_path), template="{prompt}: B is {second}, A is {first}", max_tokens=1, tolerance=0.5
        )
        assert judge(["2 + 2"] * 3, ["4 x", "5 y", "6 x"], ["5 y", "4 x", "7 x"]) == [1.0, 0.0, 0.5]
        assert (judge.asked, judge.unreadable) == (6, 0)
        assert judge(["2 + 2"], ["4 x"], ["5 ?"]) == [0.5] and judge.unreadable == 1
        with pytest.raises(ValueError, match="2 of 2 answers of the judge name neither A nor B alone, such as"):
            judge(["2 + 2"], ["4 ?"], ["5 ?"])
