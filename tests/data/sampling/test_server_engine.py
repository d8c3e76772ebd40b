import json
import threading

import pytest
from datasets import Dataset

from tests.servers import needs_serving, run_server
from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling.server_engine import sample_from_server
from trl_rlp.data.validation import require_samples


TEXTS = ["One?", "Two?", "Three?"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]


def sample(server, rows=TEXTS, n=4, **settings):
    return sample_from_server(Dataset.from_dict({"prompt": rows}), server.url, "policy", num_generations=n, **settings)


@pytest.mark.parametrize(("rows", "path"), [(TEXTS, "/v1/completions"), (CHATS, "/v1/chat/completions")])
def test_one_request_asks_for_n_choices(fake, rows, path):
    samples = sample(fake, rows, temperature=0.7, top_p=0.9, max_tokens=17, extra_body={"top_k": -1})
    require_samples(samples)
    assert samples["prompt"][:] == rows
    assert fake.paths == [path] * 3
    for request in fake.requests:
        expected = {"model": "policy", "n": 4, "temperature": 0.7, "top_p": 0.9, "max_tokens": 17, "top_k": -1}
        assert expected.items() <= request.items()
    assert samples["finished"][:] == [[True, False, True, False]] * 3
    assert [[text.split()[0] for text in row] for row in samples["completions"]] == [[text] * 4 for text in TEXTS]
    assert len({request["seed"] for request in fake.requests}) == 3


@pytest.mark.parametrize("returned", [1, 3])
def test_missing_choices_are_requested_one_by_one(fake, returned):
    """n = 4, one prompt at a time. Only the first request asks for several choices. All later requests are single."""
    fake.choices = lambda request: min(returned, request.get("n", 1))
    samples = sample(fake, max_concurrency=1, shard_size=1)
    require_samples(samples)
    assert ["n" in request for request in fake.requests] == [True] + [False] * (4 - returned) + [False] * 8
    seeds = [request["seed"] for request in fake.requests]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    assert all(len(set(row)) == 4 for row in samples["completions"])


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_n_gets_single_requests(fake, status):
    fake.respond = lambda request, number: (status, '{"error": "n must be 1"}', {}) if "n" in request else None
    require_samples(sample(fake, shard_size=1, max_concurrency=1))
    assert len(fake.requests) == 1 + 3 * 4


def test_a_server_that_fails_with_n_gets_single_requests_for_one_shard(fake):
    """Its log may show another reason than n, so the next shard asks for n again."""
    fake.respond = lambda request, number: (503, "busy", {}) if number < 2 else None
    samples = sample(fake, shard_size=1, max_concurrency=1, max_retries=1)
    require_samples(samples)
    assert ["n" in request for request in fake.requests] == [True] * 2 + [False] * 4 + [True] * 2


def test_seeds_depend_on_the_seed_the_row_and_the_sample(fake):
    fake.choices = lambda request: 1
    first, repeated, other = sample(fake), sample(fake), sample(fake, seed=1)
    assert first.to_list() == repeated.to_list()
    texts = [text for samples in (first, other) for row in samples["completions"] for text in row]
    assert len(set(texts)) == 24


def test_the_settings_of_the_connection_reach_the_server(fake):
    fake.choices = lambda request: 1
    fake.delay = 0.02
    require_samples(sample(fake, max_concurrency=3, api_key="given"))
    assert fake.max_concurrent == 3 and fake.headers["Authorization"] == "Bearer given"
    fake.requests.clear()
    fake.respond = lambda request, number: (503, "overloaded", {})
    with pytest.raises(
        RuntimeError, match="1 of 1 prompts have no completions: rows 0. .* still fails after 1 retries"
    ):
        sample(fake, TEXTS[:1], max_retries=1)
    assert len(fake.requests) == 2 + 2  # for n choices, and for one
    fake.respond, fake.delay = (lambda request, number: None), 0.2
    with pytest.raises(TimeoutError, match="did not answer within `timeout`=0.05 seconds, after 0 retries"):
        sample(fake, TEXTS[:1], max_retries=0, timeout=0.05)


def test_slow_requests_hold_up_no_other_shard(fake):
    """Four requests at a time, shards of four. The first prompts of three shards wait for all others."""
    slow, answered, all_answered, waits = {"0?", "4?", "8?"}, set(), threading.Event(), []

    def respond(request, number):
        if request["prompt"] in slow:
            waits.append(all_answered.wait(60))
            return
        answered.add(request["prompt"])
        if len(answered) == 37:
            all_answered.set()

    fake.respond = respond
    samples = sample(fake, [f"{row}?" for row in range(40)], shard_size=4, max_concurrency=4)
    assert len(samples) == 40 and waits == [True] * 3


def test_shards_in_other_threads_stop_with_the_run(fake):
    """The server refuses everything. The first full shard of 32 ends the run, and with it the others."""
    fake.respond = lambda request, number: (400, "no more", {})
    with pytest.raises(ValueError, match="prompts have no completions"):
        sample(fake, [f"{row}?" for row in range(320)], shard_size=32, max_concurrency=16)
    assert len(fake.requests) < 640  # two requests for each prompt, if nothing stopped them


def test_prompts_without_n_completions_are_left_out_and_named(fake, caplog):
    """Of six prompts, the server refuses 1 and 4. Of the completions of 2 and 3, one and two are thoughts."""

    def respond(request, number):
        row = rows.index(request["messages"])
        if row in (1, 4):
            return 400, "the prompt has 9 tokens too many", {}
        contents = ["", None, "c", "d"] if row == 3 else ["", "b", "c", "d"] if row == 2 else ["a", "b", "c", "d"]
        choices = [{"message": {"content": text}, "finish_reason": "length"} for text in contents]
        return 200, json.dumps({"choices": choices}), {}

    rows = [[{"role": "user", "content": f"{row}?"}] for row in range(6)]
    fake.respond = respond
    prompts = Dataset.from_dict({"prompt": rows, "answers": list("abcdef")})
    samples = sample_from_server(prompts, fake.url, "policy", num_generations=4)
    require_samples(samples)
    assert samples["prompt"][:] == [rows[0], rows[5]] and samples["answers"][:] == ["a", "f"]
    assert "2 of 6 prompts have no completions: rows 1, 4. The reason for row 1: " in caplog.text
    assert "the prompt has 9 tokens too many" in caplog.text
    assert "2 of 6 prompts have completions without text (3 in all): rows 2, 3. If the model" in caplog.text
    assert "raise `max_tokens` (`--max_new_tokens` of `trl-rlp sample`)" in caplog.text


def test_a_resumed_run_asks_again_about_prompts_without_an_answer_only(fake, tmp_path):
    expected = sample(fake).to_list()
    fake.respond = lambda request, number: (422, "too long", {}) if request["prompt"] == "Two?" else None
    assert sample(fake, output_dir=tmp_path).to_list() == [expected[0], expected[2]]
    fake.requests.clear()
    fake.respond = lambda request, number: None
    assert sample(fake, output_dir=tmp_path).to_list() == expected
    assert [request["prompt"] for request in fake.requests] == ["Two?"]
    assert sample(fake, output_dir=tmp_path).to_list() == expected and len(fake.requests) == 1


def test_a_run_stops_when_32_prompts_in_a_row_have_no_answer(fake, tmp_path):
    """The server answers the first shard of 16 prompts, then it refuses everything. Two more shards are asked."""
    rows = [f"{row}?" for row in range(100)]
    fake.respond = lambda request, number: (400, "no more", {}) if int(request["prompt"][:-1]) >= 16 else None
    with pytest.raises(ValueError, match="16 of 16 prompts have no completions: rows 32, 33, .*no more"):
        sample(fake, rows, shard_size=16, max_concurrency=1, output_dir=tmp_path)
    assert {int(request["prompt"][:-1]) for request in fake.requests} == set(range(48))
    assert len(list(tmp_path.glob("shard-*.arrow"))) == 2


def test_many_refused_prompts_do_not_stop_a_run_that_is_called_again(fake, tmp_path):
    """A tenth of the prompts is refused. The second call asks these 40 again, and no others."""
    rows = [f"{row}?" for row in range(400)]
    fake.respond = lambda request, number: (422, "no", {}) if request["prompt"][-2] == "0" else None
    expected = sample(fake, rows, shard_size=16, output_dir=tmp_path).to_list()
    fake.requests.clear()
    assert sample(fake, rows, shard_size=16, output_dir=tmp_path).to_list() == expected
    assert len(expected) == 360 and {request["prompt"][-2] for request in fake.requests} == {"0"}
    assert not list(tmp_path.glob("retry-*.arrow"))


def test_an_interrupted_run_resumes_after_the_last_shard(fake, tmp_path):
    expected = sample(fake).to_list()
    fake.requests.clear()
    fake.respond = lambda request, number: (404, "gone", {}) if number >= 2 else None
    with pytest.raises(ValueError, match="status 404"):
        sample(fake, shard_size=1, max_concurrency=1, output_dir=tmp_path, api_key="secret")
    assert len(list(tmp_path.glob("shard-*.arrow"))) == 2
    fake.respond = lambda request, number: None
    assert sample(fake, shard_size=1, output_dir=tmp_path, api_key="other").to_list() == expected
    assert len(fake.requests) == 2 + 2 + 1  # the refused prompt is asked for n choices, and for one
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"temperature": 0.5}, r"`temperature` was 1\.0 and is 0\.5"),
        ({"extra_body": {"top_k": 5}}, "`extra_body` was None and is {'top_k': 5}"),
        ({"rows": TEXTS[:2]}, "`prompts` was"),
    ],
)
def test_a_folder_of_another_run_is_an_error(fake, tmp_path, change, match):
    sample(fake, output_dir=tmp_path)
    with pytest.raises(ValueError, match=match):
        sample(fake, output_dir=tmp_path, **change)


def test_an_assistant_prefill_needs_continue_final_message(fake):
    rows = [[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It was"}]]
    with pytest.raises(ValueError, match="`prompts` row 0 ends with an assistant message"):
        sample(fake, rows)
    assert not fake.requests
    require_samples(sample(fake, rows, extra_body={"continue_final_message": True, "add_generation_prompt": False}))


def test_arguments_of_the_chat_template_are_refused(fake):
    """Scoring would render the prompts with them, so the server must not sample without them."""
    prompts = Dataset.from_dict({"prompt": CHATS, "chat_template_kwargs": [None, {"enable_thinking": False}, None]})
    with pytest.raises(ValueError, match="`prompts` row 1 sets .'enable_thinking'.* `extra_body="):
        sample_from_server(prompts, fake.url, "policy")
    assert not fake.requests


def test_bad_settings_are_errors(fake):
    with pytest.raises(ValueError, match="`num_generations` must be at least 2"):
        sample(fake, n=1)
    with pytest.raises(ValueError, match="`max_concurrency` must be at least 1"):
        sample(fake, max_concurrency=0)
    with pytest.raises(ValueError, match="`timeout` must be above 0 seconds"):
        sample(fake, timeout=0)
    with pytest.raises(ValueError, match="`prompts` row 0 has an empty prompt"):
        sample(fake, [" "])


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Serves a tiny model that samples by default. Yields the URL and the model folder."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    model.generation_config.update(do_sample=True, top_k=0, eos_token_id=list(range(1, 31)), pad_token_id=0)
    save(model, tokenizer, folder)
    with run_server(folder) as url:
        yield url, str(folder)


@needs_serving
@pytest.mark.parametrize("rows", [TEXTS, CHATS], ids=["text", "chat"])
def test_transformers_serve_samples_text_and_chats(serve, rows):
    url, folder = serve
    prompts = Dataset.from_dict({"prompt": rows})
    # This server follows the seeds only if it gets one request at a time.
    settings = {"num_generations": 4, "max_tokens": 6, "max_concurrency": 1}
    samples = sample_from_server(prompts, url, folder, **settings)
    require_samples(samples)
    completions = [text for row in samples["completions"] for text in row]
    finished = [value for row in samples["finished"] for value in row]
    assert len(set(completions)) > 6, "all samples are equal, so the server did not sample"
    assert any(finished) and not all(finished)
    assert not any("<eos>" in text or "<|" in text for text in completions)
    assert sample_from_server(prompts, url, folder, **settings).to_list() == samples.to_list()
    assert sample_from_server(prompts, url, folder, seed=1, **settings).to_list() != samples.to_list()


@needs_serving
def test_transformers_serve_refuses_an_unknown_field(serve):
    url, folder = serve
    with pytest.raises(ValueError, match="refused a request .*Unexpected fields"):
        sample_from_server(Dataset.from_dict({"prompt": TEXTS}), url, folder, extra_body={"no_such_field": 1})


def test_half_surrogate_pairs_can_be_saved(fake, tmp_path):
    fake.answer = lambda request: {
        "choices": [{"text": text, "finish_reason": "stop"} for text in ("a\ud83d", "\ud83d\ude00", "\udc00b", "c")]
    }
    samples = sample(fake, TEXTS[:1], output_dir=tmp_path)
    assert samples["completions"][0] == ["a\ufffd", "\U0001f600", "\ufffdb", "c"]
