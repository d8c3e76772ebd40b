"""Requests to a server with fixed answers: concurrency, retries and errors."""

import asyncio
import email.utils
import functools
import sys
import time

import pytest

from tests.programs import find_free_port
from trl_rlp.data.server_answers import Choice
from trl_rlp.data.server_client import RefusedRequest, Server, gather


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


def test_fields_of_extra_body_replace_others_and_none_removes_a_field(fake):
    fake.answer = lambda request: {"choices": [{"text": "a", "finish_reason": "stop"}]}
    extra_body = {"max_tokens": None, "max_completion_tokens": 9, "temperature": 1.0, "seed": None}
    ask(fake, TEXTS[:1], body={"model": "m", "max_tokens": 4, "temperature": 0.0, "extra_body": extra_body})
    assert fake.requests == [{"model": "m", "prompt": "One?", "max_completion_tokens": 9, "temperature": 1.0}]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_refused_for_its_contents_is_a_refused_request(fake, status):
    fake.respond = lambda request, number: (status, '{"error": "the prompt is too long"}', {})
    with pytest.raises(RefusedRequest, match=f"refused a request \\(status {status}: .*too long.* `extra_body`"):
        ask(fake, TEXTS[:1])
    assert len(fake.requests) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 501])
def test_a_refusal_that_concerns_every_request_has_another_type(fake, status):
    fake.respond = lambda request, number: (status, '{"error": "no model called policy"}', {})
    with pytest.raises(ValueError, match=f"\\(status {status}: .*called policy.*Check the model's name") as caught:
        ask(fake, TEXTS[:1])
    assert len(fake.requests) == 1 and not isinstance(caught.value, RefusedRequest)


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


def test_the_server_decides_about_another_try_and_the_wait(fake):
    """The headers of the first response: when to come back, and whether to come back at all."""
    date = email.utils.formatdate(time.time() - 5, usegmt=True)
    for headers, requests in (
        ({"retry-after-ms": "nonsense", "retry-after": "0.01"}, 2),
        ({"retry-after-ms": "nonsense", "retry-after": date}, 2),
        ({"retry-after-ms": "900000"}, 1),
        ({"x-should-retry": "false"}, 1),
    ):
        fake.requests.clear()
        fake.respond = lambda request, number, headers=headers: (429, "busy", headers) if number == 0 else None
        try:
            ask(fake, TEXTS[:1])
        except (RuntimeError, ValueError) as error:
            assert "status 429: busy" in str(error)
        assert len(fake.requests) == requests, headers


@pytest.mark.parametrize("wait", ["", "0", "Mon, 01 Jan 2024 00:00:00 GMT"])
def test_a_wait_of_nothing_does_not_replace_the_back_off(fake, monkeypatch, wait):
    """The waits are .5 s and 1 s, times a random number between .75 and 1."""
    waits, sleep, headers = [], asyncio.sleep, {"retry-after-ms": "", "retry-after": wait}
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: waits.append(seconds) or sleep(0))
    fake.respond = lambda request, number: (429, "busy", headers) if number < 2 else None
    ask(fake, TEXTS[:1])
    assert [bound <= wait <= bound / 0.75 for bound, wait in zip((0.375, 0.75), waits, strict=True)] == [True, True]


def test_the_first_failure_stops_the_other_work():
    finished = []

    async def work(seconds):
        await asyncio.sleep(seconds)
        finished.append(seconds)
        if seconds == 0.01:
            raise ValueError("broken")
        return seconds

    async def run():
        assert await gather(map(work, (0.002, 0.001))) == [0.002, 0.001]
        with pytest.raises(ValueError, match="broken"):
            await gather(map(work, (5, 0.01)))

    asyncio.run(run())
    assert finished == [0.001, 0.002, 0.01]


def test_a_missing_server_is_an_error_at_once():
    port = find_free_port()
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


def test_requests_work_inside_a_running_event_loop(fake):
    async def notebook_cell():
        return ask(fake)

    assert asyncio.run(notebook_cell()) == ask(fake)


def test_an_api_key_in_the_environment_is_not_sent(fake, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "private")
    ask(fake)
    assert fake.headers["Authorization"] == "Bearer none"
    for key in ("given", "given\n"):
        ask(fake, api_key=key)
        assert fake.headers["Authorization"] == "Bearer given"


def test_the_api_key_is_never_shown(fake):
    fake.respond = lambda request, number: (401, "key sk-secret is not valid", {})
    with pytest.raises(ValueError, match="status 401: key \\*\\*\\* is not valid"):
        ask(fake, TEXTS[:1], api_key="sk-secret")
    assert "sk-secret" not in repr(build_server(fake, api_key="sk-secret"))


def test_a_missing_package_is_an_error(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'trl-rlp\[server\]'"):
        ask(fake)


def test_half_surrogate_pairs_become_the_replacement_character(fake):
    texts = ("a\ud83d", "\ud83d\ude00", "\udc00b", "c")
    fake.answer = lambda request: {"choices": [{"text": text, "finish_reason": "stop"} for text in texts]}
    (choices,) = ask(fake, TEXTS[:1], n=4)
    assert [text for text, _ in choices] == ["a\ufffd", "\U0001f600", "\ufffdb", "c"]
