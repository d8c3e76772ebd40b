"""Servers differ from OpenAI's in what they refuse, how they say it and how long they take."""

import asyncio
import json
import os
import signal
import time

import pytest
from datasets import Dataset

from tests.servers import FakeServer
from trl_rlp.cli import main
from trl_rlp.data.judges.server import ServerJudge
from trl_rlp.data.sampling.server_engine import sample_from_server


TEXTS = ["One?", "Two?", "Three?"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


def sample(fake, rows=TEXTS, **settings):
    settings = {"num_generations": 4, "max_retries": 2, **settings}
    return sample_from_server(Dataset.from_dict({"prompt": rows}), fake.url, "policy", **settings)


def answer_chats(fake, **choice):
    """Makes the server answer each chat with one choice."""
    fake.respond = lambda request, number: (200, json.dumps({"choices": [choice]}), {})


@pytest.mark.parametrize("status", [400, 404, 405, 422, 500, 501])
def test_a_server_may_refuse_several_choices_with_any_status(fake, status):
    """
    A user samples 4 completions of 3 prompts from a server that has no `n`. Servers say so with different statuses.

    Right: each completion gets its own request. 501 and the statuses below 500 are not repeated.
    """
    fake.respond = lambda request, number: (status, '{"error": "n must be 1"}', {}) if "n" in request else None
    samples = sample(fake, shard_size=3, max_concurrency=1)
    assert [len(set(row)) for row in samples["completions"]] == [4, 4, 4]
    refused = sum("n" in request for request in fake.requests)
    assert refused == (9 if status == 500 else 3) and len(fake.requests) == refused + 12


def test_one_prompt_that_is_too_long_does_not_end_requests_for_several_choices(fake):
    """
    A user's first prompt is longer than the context. The server refuses it with and without `n`.

    Right: n is not the reason, so the other prompts are still answered by one request each.
    """
    fake.respond = lambda request, number: (400, "too long", {}) if request["prompt"] == "One?" else None
    assert sample(fake, max_concurrency=1, shard_size=1)["prompt"][:] == TEXTS[1:]
    assert ["n" in request for request in fake.requests] == [True, False, True, True]


@pytest.mark.parametrize(
    ("reason", "is_finished", "is_named"),
    [
        ("eos_token", True, False),
        ("stop_sequence", True, False),
        ("end_turn", True, False),
        ("STOP", True, False),
        ("MAX_TOKENS", False, False),
        ("abort", False, False),
        ("worn_out", False, True),
        (None, False, True),
    ],
)
def test_servers_have_synonyms_for_stop(fake, caplog, reason, is_finished, is_named):
    """
    A user samples from a server that ends completions with `eos_token`. All counted as unfinished, without a word.

    Right: synonyms count as finished, and an unknown reason is named once.
    """
    fake.answer = lambda request: {"choices": [{"text": "a", "finish_reason": reason}] * request.get("n", 1)}
    assert sample(fake)["finished"][:] == [[is_finished] * 4] * 3
    assert caplog.text.count("unknown finish reason") == is_named


ERROR_BODIES = {
    "an error": '{"error": {"message": "the provider is overloaded", "code": 502}}',
    "an error without a status": '{"error": {"message": "the provider is overloaded"}}',
    "no choices": '{"choices": [], "error": "the provider is overloaded"}',
    "an error in the choice": json.dumps(
        {"choices": [{"text": "", "finish_reason": "error", "error": {"message": "the provider is overloaded"}}]}
    ),
    "html": "<html><p>the provider is overloaded</p></html>",
}


@pytest.mark.parametrize("kind", ERROR_BODIES)
def test_a_gateway_reports_a_failure_with_status_200(fake, kind):
    """
    A user samples through a gateway. It reports a failure of the server behind it in the body of a response.

    Right: the request is repeated. If it still fails, the error shows the body and does not blame the address.
    """
    response = (200, ERROR_BODIES[kind], {})
    fake.respond = lambda request, number: response if number == 0 else None
    assert len(sample(fake)) == 3
    fake.respond = lambda request, number: response
    with pytest.raises(RuntimeError, match="after 2 retries .*the provider is overloaded") as caught:
        sample(fake)
    assert "base_url" not in str(caught.value)


def test_a_gateway_reports_a_prompt_that_is_too_long_with_status_200(fake, caplog):
    """A user's second prompt is too long, and the gateway says so in the body. Right: only that prompt is missing."""
    body = '{"error": {"message": "context length exceeded", "code": 400}}'
    fake.respond = lambda request, number: (200, body, {}) if request["prompt"] == "Two?" else None
    assert sample(fake)["prompt"][:] == ["One?", "Three?"]
    assert "rows 1. The reason for row 1: " in caplog.text and "context length exceeded" in caplog.text


def test_a_slow_request_has_its_own_message(fake):
    """
    A user's request takes longer than the client waits. The message was "No server answers".

    Right: the message names `timeout`, which is an argument of both clients.
    """
    fake.delay = 0.3
    with pytest.raises(TimeoutError, match="within `timeout`=0.05 seconds, after 0 retries. Raise `timeout`"):
        sample(fake, TEXTS[:1], max_retries=0, timeout=0.05)
    with pytest.raises(TimeoutError, match="within `timeout`=0.05 seconds"):
        ServerJudge(fake.url, "judge", max_retries=0, timeout=0.05)(["?"], ["a"], ["b"])
    assert len(sample(fake, TEXTS[:1], timeout=30)) == 1


def test_a_server_that_is_too_slow_for_n_completions_gets_single_requests(fake):
    """A user's server generates one completion after the other. Right: single requests, within the time limit."""
    fake.respond = lambda request, number: time.sleep(2.5 if "n" in request else 0)
    assert len(sample(fake, TEXTS[:1], max_retries=0, timeout=1.5)["completions"][0]) == 4
    assert ["n" in request for request in fake.requests] == [True] + [False] * 4


@pytest.mark.parametrize("is_asyncio_run", [False, True], ids=["notebook", "asyncio.run"])
def test_an_interrupt_stops_a_running_cell(fake, tmp_path, is_asyncio_run):
    """
    A user presses Ctrl-C in a notebook after the first shard. The cell went on until all requests were answered.

    Right: it stops at once, and the finished shards are kept.
    """

    def respond(request, number):
        if number == 36:
            os.kill(os.getpid(), signal.SIGINT)

    async def cell():
        sample(fake, [f"{row}?" for row in range(64)], shard_size=32, max_concurrency=4, output_dir=tmp_path)

    fake.delay, fake.respond = 0.1, respond
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell()) if is_asyncio_run else loop.run_until_complete(cell())
    loop.close()
    assert 36 < len(fake.requests) < 56
    assert len(list(tmp_path.glob("shard-*.arrow"))) == 1  # either one, because a thread may start late


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("content", ["", None])
def test_an_unfinished_thought_is_no_completion(fake, name, content, caplog):
    """
    A user samples from a model that reasons. At the token limit, it was still reasoning about one of the prompts.

    Right: that prompt is left out, with a warning. An empty completion would become y_l.
    """

    def respond(request, number):
        is_thought = request["messages"] == CHATS[1]
        message = {"content": content, name: "Let me see"} if is_thought else {"content": "4", name: "2 + 2"}
        choice = {"message": message, "finish_reason": "length" if is_thought else "stop"}
        return 200, json.dumps({"choices": [choice] * 4}), {}

    fake.respond = respond
    assert sample(fake, CHATS)["prompt"][:] == [CHATS[0], CHATS[2]]
    assert "1 of 3 prompts have completions without text (4 in all): rows 1." in caplog.text


def test_unfinished_thoughts_only_are_an_error(fake, tmp_path, capsys):
    """A user's token limit is too low for every thought. Right: an error that names the option of the command."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": chat}) + "\n" for chat in CHATS))
    answer_chats(fake, message={"content": "", "reasoning": "Let me see"}, finish_reason="length")
    words = ["sample", "--model", "m", "--prompts", str(prompts), "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--base_url", fake.url, "--num_generations", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 3 prompts have completions without text (6 in all)" in error and "`--max_new_tokens`" in error


def test_a_judge_that_only_thought_has_no_verdict(fake):
    """A user's judge reasons beyond its token limit. Right: the answers are unreadable, whatever the thought says."""
    answer_chats(fake, message={"content": "", "reasoning": "Verdict: A"}, finish_reason="length")
    judge = ServerJudge(fake.url, "judge", tolerance=1.0)
    assert judge(["?"], ["a"], ["b"]) == [0.5] and judge.unreadable == 2


def test_a_server_that_asks_for_a_long_wait_is_quoted(fake):
    """A user's daily limit was reached. The message said "after 0 retries" only. Right: it says how long to wait."""
    fake.respond = lambda request, number: (429, "daily limit", {"retry-after-ms": "", "retry-after": "3600"})
    with pytest.raises(RuntimeError, match="asks to wait 3600 seconds, so the request was not repeated"):
        sample(fake, TEXTS[:1])


@pytest.mark.parametrize("thought", [[], [{"type": "thinking", "thinking": [{"type": "text", "text": "Verdict: B"}]}]])
def test_a_content_may_be_a_list_of_parts(fake, thought):
    """
    A user's server sends the content of a message as parts, as Mistral's does for models that reason. Each answer was
    asked again, and then lost.

    Right: the text of the parts. Thoughts are left out.
    """
    parts = [*thought, {"type": "text", "text": "Verdict"}, {"type": "text", "text": ": A"}]
    answer_chats(fake, message={"content": parts}, finish_reason="stop")
    assert sample(fake, CHATS)["completions"][0] == ["Verdict: A"] * 4
    judge = ServerJudge(fake.url, "judge", tolerance=0.0)
    assert judge(["?"], ["a"], ["b"]) == [0.5] and judge.unreadable == 0


def test_a_server_that_refuses_max_tokens_can_be_asked(fake, tmp_path, capsys):
    """
    A user's judge wants `max_completion_tokens`, no `max_tokens` and temperature 1, as newer models of OpenAI do.

    Right: `extra_body` replaces and removes fields, also on the command line.
    """

    def respond(request, number):
        if "max_tokens" in request or request["temperature"] != 1:
            return 400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", {}
        return 200, json.dumps({"choices": [{"message": {"content": "A"}, "finish_reason": "stop"}]}), {}

    fake.respond = respond
    rows = {name: tmp_path / f"{name}.json" for name in ("outputs", "reference_outputs")}
    for name, path in rows.items():
        path.write_text(json.dumps([{"instruction": "?", "output": name, "generator": name}]))
    words = ["evaluate", "--judge", "server", "--judge_model", "judge", "--base_url", fake.url]
    words += [word for name, path in rows.items() for word in (f"--{name}", str(path))]
    assert main([*words, "--output_dir", str(tmp_path / "first")]) == 2
    assert "`extra_body` changes fields" in capsys.readouterr().err
    extra_body = {"max_tokens": None, "max_completion_tokens": 500, "temperature": 1}
    assert main([*words, "--output_dir", str(tmp_path / "out"), "--extra_body", json.dumps(extra_body)]) == 0
    assert fake.requests[-1]["max_completion_tokens"] == 500


def test_a_command_has_the_options_of_the_connection_and_keeps_the_key_secret(fake, tmp_path, monkeypatch):
    """
    A user samples from a paid server with `trl-rlp sample`. Its messages named `api_key` and `extra_body`, which it
    did not have.

    Right: it has them. The key can come from an environment variable, and is in no file.
    """
    monkeypatch.setenv("MY_KEY", "sk-secret")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a?"}\n')
    config = tmp_path / "sample.yaml"
    config.write_text("extra_body:\n  top_k: 5\n  seed: null\ntimeout: 30\nmax_retries: 0\nmax_concurrency: 1\n")
    fake.answer = lambda request: {"choices": [{"text": "a", "finish_reason": "stop"}] * 2}
    words = ["sample", "--model", "m", "--prompts", str(tmp_path / "prompts.jsonl"), "--num_generations", "2"]
    words += ["--base_url", fake.url, "--config", str(config), "--api_key_variable", "MY_KEY"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert fake.headers["Authorization"] == "Bearer sk-secret"
    assert fake.requests[0]["top_k"] == 5 and "seed" not in fake.requests[0]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 3 and not any(b"sk-secret" in path.read_bytes() for path in files)


@pytest.mark.parametrize("key", ["sk-sec\nret", "sk-secrét"])
def test_a_key_that_no_header_can_hold_is_not_shown(fake, key):
    """
    A user's key was pasted with a line break inside. The error showed the header with the key, and blamed `base_url`.

    Right: the error names `api_key`, and does not show it.
    """
    with pytest.raises(ValueError, match="`api_key` holds a line break or a character") as caught:
        sample(fake, api_key=key)
    assert "sk-" not in str(caught.value) and not fake.all_headers


@pytest.mark.parametrize(
    "lines",
    [
        'api_key: "sk-secret',
        "api_key: @sk-secret",
        "- api_key: sk-secret",
        "api_key sk-secret",
        "api_key: [sk-secret]",
    ],
)
def test_an_error_about_a_file_of_options_does_not_show_the_key(tmp_path, capsys, lines):
    """A user made a mistake in the line of the key. The message, which a cluster logs, quoted the line."""
    config = tmp_path / "sample.yaml"
    config.write_text(f"{lines}\n")
    words = ["sample", "--model", "m", "--prompts", "p.jsonl", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "sk-secret" not in error and "api_key" in error


def test_a_key_that_is_passed_as_the_name_of_a_variable_is_not_shown(tmp_path, capsys):
    """A user wrote `--api_key_variable $MY_KEY`, and the message quoted the key."""
    words = ["sample", "--model", "m", "--prompts", "p.jsonl", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--api_key_variable", "sk-secret"]) == 2
    error = capsys.readouterr().err
    assert "sk-secret" not in error and "`api_key_variable` is not the name" in error


def test_a_password_in_the_address_is_in_no_file_and_no_message(fake, tmp_path):
    """A user's server asks for a name and a password, in `base_url`. Right: only the server gets them."""
    fake.respond = lambda request, number: (503, "down", {}) if request["prompt"] == "Two?" else None
    address = fake.url
    fake.url = address.replace("://", "://me:pass-word@")
    sample(fake, TEXTS[:1], output_dir=tmp_path)
    assert fake.headers["Authorization"].startswith("Basic ")
    assert not any(b"pass-word" in path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(RuntimeError, match=address) as caught:
        sample(fake, TEXTS[1:2])
    assert "pass-word" not in str(caught.value)


def test_the_environment_of_another_server_is_not_sent(fake, monkeypatch):
    """
    A user has OpenAI's variables in the environment and samples from a server of someone else.

    Right: nothing of them is sent.
    """
    values = {
        "OPENAI_API_KEY": "private-key",
        "OPENAI_ADMIN_KEY": "private-admin",
        "OPENAI_ORG_ID": "private-organization",
        "OPENAI_PROJECT_ID": "private-project",
        "OPENAI_CUSTOM_HEADERS": "X-Secret: private-header\nAuthorization: Bearer private-token",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    sample(fake, api_key="given")
    assert len(fake.all_headers) == 1 + 3
    for headers in fake.all_headers:
        assert headers["Authorization"] == "Bearer given"
        assert not any("private" in value or name.lower().startswith("openai-") for name, value in headers.items())
