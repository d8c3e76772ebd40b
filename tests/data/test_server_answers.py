"""Reading of responses: texts, finish reasons, thoughts, and bodies that are no completion."""

import json

import pytest

from trl_rlp.data.server_answers import FINISHED, UNFINISHED, read_choices, read_error


def read(*choices, is_chat=True):
    return read_choices(json.dumps({"choices": choices}), is_chat, set())


def message(content, reason, **fields):
    return {"message": {"role": "assistant", "content": content, **fields}, "finish_reason": reason}


def test_texts_and_messages_are_read_in_order():
    texts = [{"text": "a", "finish_reason": "stop"}, {"text": "", "finish_reason": "length"}]
    assert read(*texts, is_chat=False) == [("a", True), ("", False)]
    assert read(message("a", "stop"), message("", "stop"), message("b", "length")) == [
        ("a", True),
        ("", True),
        ("b", False),
    ]


@pytest.mark.parametrize("name", sorted(FINISHED | UNFINISHED))
def test_known_finish_reasons_are_read_without_a_warning(name, caplog):
    for reason in (name, name.upper()):
        assert read(message("a", reason)) == [("a", name in FINISHED)]
    assert not caplog.text


def test_an_unknown_finish_reason_is_named_once(caplog):
    named = set()
    for reason in ("weary", "weary", None, None):
        assert read_choices(json.dumps({"choices": [message("a", reason)]}), True, named) == [("a", False)]
    assert caplog.text.count("unknown finish reason 'weary'") == caplog.text.count("unknown finish reason None") == 1


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (message(None, "stop"), None),
        (message(None, "length", reasoning="Let me"), None),
        (message("", "length"), None),
        (message("", "length", reasoning_content="Let me"), None),
        (message("\n", "length", reasoning_content="Let me"), None),
        (message("\n", "length"), "\n"),
        (message("", "stop", reasoning_content="I say nothing."), ""),
        (message("4", "length", reasoning="Two and two"), "4"),
        (message([{"type": "thinking", "thinking": []}, {"type": "text", "text": "4"}], "stop"), "4"),
        (message([{"type": "thinking", "thinking": []}], "length"), None),
    ],
)
def test_a_thought_without_an_answer_is_no_completion(choice, text):
    assert read(choice)[0].text == text


def test_half_surrogate_pairs_become_the_replacement_character():
    choices = read(*(message(text, "stop") for text in ("a\ud83d", "\ud83d\ude00", "\udc00b", "c")))
    assert [choice.text for choice in choices] == ["a\ufffd", "\U0001f600", "\ufffdb", "c"]


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        "",
        "<!doctype html>\n<p>Welcome to nginx</p>",
        "{'choices':",
        "null",
        "[1, 2]",
        '{"answer": 42}',
        '{"error": {"message": "overloaded"}}',
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [null]}',
        '{"choices": [{"text": null, "message": null, "finish_reason": "stop"}]}',
        '{"choices": [{"text": 1, "message": {"content": 1}, "finish_reason": "stop"}]}',
        '{"choices": [{"text": "", "message": {"content": ""}, "finish_reason": "error"}]}',
    ],
)
def test_other_bodies_hold_no_completion(body, is_chat):
    assert read_choices(body, is_chat, set()) == []


def test_the_status_in_a_body_is_read():
    assert read_error('{"error": {"code": 429, "message": "slow down"}}') == 429
    for body in ('{"error": {"code": "busy"}}', '{"error": "busy"}', '{"error": {"code": 200}}', "[]", "<html>"):
        assert read_error(body) is None
