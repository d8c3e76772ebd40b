"""Requests to a server with fixed answers: concurrency, retries and errors."""

import asyncio
import functools
import json
import socket
import sys
import time

import pytest

from trl_rlp.data.server_client import Choice, Server


TEXTS = ["One?", "Two?", "Three?"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]


def build_server(fake, **settings) -> Server:
    defaults = {"api_key": None, "max_retries": 5, "max_concurrency": 16, "body": {"model": "policy"}}
    return Server(fake if isinstance(fake, str) else fake.url, **{**defaults, **settings})


def ask(fake, prompts=TEXTS, n: int = 1, **settings) -> list[list[Choice]]:
    """Sends one request for each prompt. The seed is the number of the prompt."""

    async def job(prompt, seed, session):
        return await session.ask(prompt, seed, n)

    return build_server(fake, **settings).work(
        [functools.partial(job, prompt, seed) for seed, prompt in enumerate(prompts)]
    )


@pytest.mark.parametrize(
    ("prompts", "path", "field"),
    [(TEXTS, "/v1/completions", "prompt"), (CHATS, "/v1/chat/completions", "messages")],
    ids=["text", "chat"],
)
def test_each_kind_of_prompt_has_its_endpoint_and_results_are_in_order(fake, prompts, path, field):
    body = {"model": "policy", "temperature": 0.7, "extra_body": {"top_k": -1}}
    assert ask(fake, prompts, n=2, body=body) == [
        [(f"{text} {seed} 0", True), (f"{text} {seed} 1", False)] for seed, text in enumerate(TEXTS)
    ]
    assert fake.paths == [path] * 3
    for request in fake.requests:
        assert request == {
            "model": "policy",
            "temperature": 0.7,
            "top_k": -1,
            "n": 2,
            field: prompts[request["seed"]],
            "seed": request["seed"],
        }


def test_a_single_choice_is_requested_without_n(fake):
    """Some servers refuse the field even for 1."""
    ask(fake)
    assert not any("n" in request for request in fake.requests)


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_several_choices_returns_none(fake, status):
    fake.respond = lambda request, number: (status, '{"error": "n must be 1"}', {})
    assert ask(fake, TEXTS[:1], n=4) == [[]]
    with pytest.raises(ValueError, match=f"refused a request \\(status {status}"):
        ask(fake, TEXTS[:1])


def test_the_number_of_concurrent_requests_is_limited(fake):
    fake.delay = 0.02
    assert len(ask(fake, TEXTS * 4, max_concurrency=3)) == 12
    assert fake.max_concurrent == 3


def test_temporary_failures_are_retried(fake):
    failures = {0: 503, 1: 429, 2: 500}
    fake.respond = lambda request, number: (failures[number], "busy", {}) if number in failures else None
    assert len(ask(fake, max_concurrency=1)) == 3
    assert len(fake.requests) == 3 + 3


def test_permanent_failures_are_errors_after_the_retries(fake):
    fake.respond = lambda request, number: (503, "<html>\n  overloaded\n</html>", {})
    with pytest.raises(RuntimeError, match="still fails after 2 retries \\(status 503: <html> overloaded </html>\\)"):
        ask(fake, TEXTS[:1], max_retries=2)
    assert len(fake.requests) == 3


def test_a_refused_request_is_an_error_without_retries(fake):
    fake.respond = lambda request, number: (404, '{"error": "no model called policy"}', {})
    with pytest.raises(ValueError, match="refused a request \\(status 404: .*no model called policy.*Check `model`"):
        ask(fake, TEXTS[:1])
    assert len(fake.requests) == 1


def test_a_missing_server_is_an_error_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(
        ConnectionError, match=rf"No server answers at `base_url`=http://127\.0\.0\.1:{port}/v1.*Start a server"
    ) as caught:
        ask(f"http://127.0.0.1:{port}/v1")
    assert time.monotonic() - begin < 5
    assert "\n" not in str(caught.value)


def test_the_server_is_looked_for_only_once(fake, monkeypatch):
    server, searches = build_server(fake), []
    original = sys.modules[Server.__module__]._require_response

    async def search(*arguments):
        searches.append(arguments)
        await original(*arguments)

    monkeypatch.setattr(f"{Server.__module__}._require_response", search)
    for _ in range(2):
        assert server.work([lambda session: session.ask("One?", 0)]) == [[("One? 0 0", True)]]
    assert len(searches) == 1 and server.is_reached


INVALID_BODIES = {
    "html": ("<!doctype html>\n<p>Welcome to nginx</p>", "Welcome to nginx"),
    "not json": ("{'choices':", "choices"),
    "no choices": ('{"choices": []}', "choices"),
    "other json": ('{"answer": 42}', "42"),
    "a list": ("[1, 2]", r"\[1, 2\]"),
    "null": ("null", "null"),
    "null choice": ('{"choices": [null]}', "null"),
    "null text": ('{"choices": [{"text": null, "message": null, "finish_reason": "stop"}]}', "null"),
    "number": ('{"choices": [{"text": 1, "message": {"content": 1}, "finish_reason": "stop"}]}', "1"),
    "empty": ("", "an empty body"),
}


@pytest.mark.parametrize("prompts", [TEXTS, CHATS], ids=["text", "chat"])
@pytest.mark.parametrize("kind", INVALID_BODIES)
def test_a_response_that_is_not_a_completion_is_a_one_line_error(fake, prompts, kind):
    body, match = INVALID_BODIES[kind]
    fake.respond = lambda request, number: (
        200,
        body,
        {"Content-Type": "text/html" if kind == "html" else "application/json"},
    )
    with pytest.raises(ValueError, match=f"The response of the server at .* is not a completion.*{match}") as caught:
        ask(fake, prompts)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_message_without_content_is_none(fake):
    choice = {"message": {"content": None, "reasoning": "Let me see"}, "finish_reason": "length"}
    fake.respond = lambda request, number: (200, json.dumps({"choices": [choice]}), {})
    assert ask(fake, CHATS[:1]) == [[(None, False)]]


def test_requests_work_inside_a_running_event_loop(fake):
    async def notebook_cell():
        return ask(fake)

    assert asyncio.run(notebook_cell()) == ask(fake)


def test_an_api_key_in_the_environment_is_not_sent(fake, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "private")
    ask(fake)
    assert fake.headers["Authorization"] == "Bearer none"
    ask(fake, api_key="given")
    assert fake.headers["Authorization"] == "Bearer given"


def test_a_missing_package_is_an_error(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install trl-rlp\[server\]"):
        ask(fake)


def test_half_surrogate_pairs_become_the_replacement_character(fake):
    texts = ("a\ud83d", "\ud83d\ude00", "\udc00b", "c")
    fake.answer = lambda request: {"choices": [{"text": text, "finish_reason": "stop"} for text in texts]}
    (choices,) = ask(fake, TEXTS[:1], n=4)
    assert [text for text, _ in choices] == ["a\ufffd", "\U0001f600", "\ufffdb", "c"]
