"""What cost money or GPU hours is on disk as soon as it is there. A fault, an interrupt or a kill loses none of it."""

import json
import multiprocessing
import os
import signal
import time

import pytest
from datasets import Dataset

import trl_rlp.cli.prefer as prefer
from tests.reward_runs import SameText
from tests.servers import FakeServer
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.cli import main
from trl_rlp.data.judges.language_model import language_model_judge
from trl_rlp.data.judges.server import ServerJudge
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.evaluation.alpaca_eval import annotate, read_annotations
from trl_rlp.evaluation.policy_pairs import judged_pairs
from trl_rlp.stages.samples import group_samples
from trl_rlp.storage.artifacts import load_data, save_data
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import RunFolder


PAIRS = 30


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


def answer(text="A", finish_reason="stop"):
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]}), {}


def get_question(request):
    return request["messages"][0]["content"]


def answer_all(fake, stop_after=None):
    """Makes the server prefer "good" to "bad", and refuse questions with "long". It may fail after some requests."""

    def respond(request, number):
        question = get_question(request)
        if stop_after is not None and number >= stop_after:
            return 500, "out of memory", {}
        if "long" in question:
            return 400, "maximum context length is 2048 tokens", {}
        return answer("A" if question.index("good") < question.index("bad") else "B")

    fake.respond = respond


def list_questions(fake):
    return [get_question(request) for request in fake.requests]


@pytest.fixture
def files(tmp_path):
    """Outputs of two models on the same instructions. The policy's output 7 is too long for the judge."""
    rows = {
        name: [
            {"instruction": f"Question {row}?", "output": f"{text} {row}", "generator": name} for row in range(PAIRS)
        ]
        for name, text in (("outputs", "good"), ("reference_outputs", "bad"))
    }
    rows["outputs"][7]["output"] = "good, but long"
    for name, values in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return rows


def build_words(tmp_path, fake, *more, folder="out"):
    paths = [f"--{name}={tmp_path / name}.json" for name in ("outputs", "reference_outputs")]
    judge = ["--judge", "server", "--judge_model", "judge", "--base_url", fake.url, "--max_concurrency", "2"]
    return ["evaluate", f"--output_dir={tmp_path / folder}", *paths, *judge, *more]


def read_metrics(tmp_path, folder="out"):
    return json.loads((tmp_path / folder / "metrics.json").read_text())


# A judge on a server


def test_one_pair_that_the_server_refuses_is_named_and_left_out(tmp_path, fake, files, caplog, capsys):
    """
    Of 30 pairs, the server refused one, which was over its context.

    Right: the others are judged and saved. The pair is named, counted and has no preference.
    """
    answer_all(fake)
    assert main(build_words(tmp_path, fake)) == 0
    metrics = read_metrics(tmp_path)
    assert metrics["judge"] == {"asked": 2 * PAIRS - 2, "unreadable": 0, "cut": 0, "refused": 1}
    assert (metrics["win_rate"]["prompts"], metrics["win_rate"]["missing"]) == (PAIRS - 1, 1)
    preferences = [row["preference"] for row in read_annotations(tmp_path / "out" / "annotations.json")]
    assert preferences == [None if row == 7 else 2.0 for row in range(PAIRS)]
    assert "could not read 1 of 30 pairs. They are left out: pair 7 ('Question 7?')" in caplog.text
    assert "maximum context length is 2048" in caplog.text
    assert "1 pairs left out" in capsys.readouterr().out


def test_a_server_that_refuses_every_pair_is_an_error(fake):
    """A user's request had a field that the server does not know. This concerns no single pair."""
    fake.respond = lambda request, number: (400, "unknown field", {})
    with pytest.raises(ValueError, match="could read none of 2 pairs. .*unknown field"):
        ServerJudge(fake.url, "judge")(["?", "!"], ["good"] * 2, ["bad"] * 2)


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_is_fatal_at_once(fake, status):
    """A wrong key is not the fault of one pair."""
    fake.respond = lambda request, number: (status, "no", {})
    with pytest.raises(ValueError, match=f"status {status}"):
        ServerJudge(fake.url, "judge", max_concurrency=1)(["?"] * 9, ["good"] * 9, ["bad"] * 9)
    assert len(fake.requests) < 9


def test_a_second_call_asks_only_what_the_first_one_did_not_get(tmp_path, fake, files, capsys):
    """
    The server failed after 40 of 60 requests.

    Right: the answers are on disk, the second call asks only the others, and the result is that of one call.
    """
    answer_all(fake, stop_after=40)
    assert main(build_words(tmp_path, fake, "--max_retries", "0")) == 2
    error = capsys.readouterr().err
    assert "out of memory" in error and "of 30 pairs without an answer, first pair " in error
    answered = set(list_questions(fake)[:40])
    kept = (tmp_path / "out" / "judge_answers.jsonl").read_text().splitlines()
    assert len(kept) == sum("long" not in question for question in answered)
    fake.requests.clear()
    answer_all(fake)
    assert main(build_words(tmp_path, fake)) == 0
    assert not {question for question in list_questions(fake) if "long" not in question} & answered
    fake.requests.clear()
    assert main(build_words(tmp_path, fake, folder="again")) == 0 and len(fake.requests) == 2 * PAIRS
    assert read_metrics(tmp_path) == read_metrics(tmp_path, "again")


@pytest.mark.parametrize(
    "more", [["--samples", "missing.jsonl"], ["--reward_model", "r", "--preferences", "no.jsonl"]]
)
def test_a_wrong_path_is_found_before_a_judge_is_asked(tmp_path, fake, files, capsys, more):
    """A user mistyped the path of the other data to evaluate. The judge had answered all questions by then."""
    assert main(build_words(tmp_path, fake, *more)) == 2
    assert "No dataset at" in capsys.readouterr().err and not fake.requests


def test_one_question_that_the_server_fails_on_does_not_hold_up_the_others(fake):
    """The server crashed on one question, again and again. The others are answered, and the pair is named."""
    answer_all(fake)
    respond = fake.respond
    fake.respond = lambda request, number: (
        (500, "crash", {}) if "good 3" in get_question(request) else respond(request, number)
    )
    judge = ServerJudge(fake.url, "judge", max_retries=0, max_concurrency=1)
    pairs = [f"Question {row}?" for row in range(6)], [f"good {row}" for row in range(6)], ["bad"] * 6
    for asked in (12, 2):
        with pytest.raises(
            RuntimeError, match=r"crash.* 1 of 6 pairs without an answer, first pair 3 \('Question 3\?'\)"
        ):
            judge(*pairs)
        assert len(fake.requests) == asked
        fake.requests.clear()
    pairs = [texts[:3] + texts[4:] for texts in pairs]
    assert judge(*pairs) == [1.0] * 5 and fake.requests == []


def test_a_server_that_went_down_is_not_asked_about_all_pairs(fake):
    """After 32 failures in a row, no other pair is likely to be answered."""
    fake.respond = lambda request, number: (500, "down", {})
    judge = ServerJudge(fake.url, "judge", max_retries=0, max_concurrency=1)
    for requests in (32, 64):
        with pytest.raises(RuntimeError, match="down"):
            judge(["?"] * 100, [f"good {row}" for row in range(100)], ["bad"] * 100)
        assert len(fake.requests) == requests


def test_too_many_unreadable_answers_are_paid_for_once(tmp_path, fake, files, capsys):
    """
    Most answers were cut, so the call ended in an error. The user raised `max_tokens`.

    Right: only the questions whose answers were cut are asked again, in the same folder.
    """
    fake.respond = lambda request, number: answer(
        "Both are" if number % 2 else "A", "length" if number % 2 else "stop"
    )
    assert main(build_words(tmp_path, fake)) == 2
    assert "30 of 60 answers of the judge name neither A nor B" in capsys.readouterr().err
    complete = {question for number, question in enumerate(list_questions(fake)) if number % 2 == 0}
    assert len(read_annotations(tmp_path / "out" / "annotations.json")) == PAIRS
    fake.requests.clear()
    fake.respond = lambda request, number: answer()
    assert main(build_words(tmp_path, fake, "--max_tokens", "200")) == 0
    assert len(fake.requests) == PAIRS and not set(list_questions(fake)) & complete
    assert read_metrics(tmp_path)["judge"] == {"asked": 2 * PAIRS, "unreadable": 0, "cut": 0, "refused": 0}


def test_a_kill_keeps_the_answers(tmp_path, fake):
    """A job ran out of time. The next one goes on from there."""
    answer_all(fake)
    fake.delay = 0.05
    cache = tmp_path / "answers.jsonl"
    pairs = ["?"] * 100, [f"good {row}" for row in range(100)], ["bad"] * 100

    def ask():
        ServerJudge(fake.url, "judge", max_concurrency=1, cache=cache)(*pairs)

    program = multiprocessing.get_context("fork").Process(target=ask)
    program.start()
    while len(fake.requests) < 12 and program.is_alive():
        time.sleep(0.01)
    program.kill()
    program.join()
    fake.delay = 0.0
    asked = len(fake.requests)
    assert 12 <= asked < 200
    assert ServerJudge(fake.url, "judge", cache=cache)(*pairs) == [1.0] * 100
    # At most the request that was under way is sent twice.
    assert len(fake.requests) <= 201


def test_a_judge_in_a_notebook_goes_on_after_an_interrupt(fake):
    """A user pressed Ctrl-C in a cell, and ran the cell again. The judge object still has its answers."""
    answer_all(fake)
    judge = ServerJudge(fake.url, "judge", max_concurrency=1)
    respond = fake.respond

    def interrupt(request, number):
        if number == 9:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return respond(request, number)

    fake.respond = interrupt
    pairs = ["?"] * 20, [f"good {row}" for row in range(20)], ["bad"] * 20
    with pytest.raises(KeyboardInterrupt):
        judge(*pairs)
    assert judge(*pairs) == [1.0] * 20
    assert len(fake.requests) <= 41


@pytest.mark.parametrize("name", ["outputs", "reference_outputs"])
def test_a_text_that_cannot_be_sent_or_saved_is_named_before_any_request(tmp_path, fake, files, name, capsys):
    r"""
    An output held half of a surrogate pair ("\ud83d"), as a cut answer of some servers does.

    Right: nothing is asked, and the file's row is named.
    """
    files[name][3]["output"] = "good \ud83d"
    (tmp_path / f"{name}.json").write_text(json.dumps(files[name]))
    assert main(build_words(tmp_path, fake)) == 2
    error = capsys.readouterr().err
    assert f"{name}" in error and "row 3" in error and "surrogate" in error and fake.requests == []
    with pytest.raises(ValueError, match="row 3 .*surrogate"):
        annotate(files["outputs"], files["reference_outputs"], ServerJudge(fake.url, "judge"), "judge")
    assert fake.requests == []


# Judges in the gate and for synthetic preferences


SAMPLES = Dataset.from_dict(
    {
        "prompt": [f"Question {row}?" for row in range(PAIRS)],
        "completions": [["good, but long" if row == 7 else f"good {row}", "bad"] for row in range(PAIRS)],
        "finished": [[True, True]] * PAIRS,
    }
)


@pytest.mark.parametrize(
    "label", [judged_pairs, lambda *args: synthesize_preferences(args[0], "rlaif", judge=args[1])[0]]
)
def test_labels_of_pairs_are_kept_and_a_refused_pair_is_left_out(tmp_path, fake, label):
    """The server failed in the middle of the gate's pairs, or of RLAIF, and refused one pair."""
    answer_all(fake, stop_after=40)
    with pytest.raises(RuntimeError, match="out of memory"):
        judge = ServerJudge(fake.url, "judge", max_retries=0, max_concurrency=1, cache=tmp_path / "answers.jsonl")
        label(SAMPLES, judge)
    answered = set(list_questions(fake)[:40])
    fake.requests.clear()
    answer_all(fake)
    pairs = label(SAMPLES, ServerJudge(fake.url, "judge", cache=tmp_path / "answers.jsonl"))
    assert len(pairs) == PAIRS - 1 and "Question 7?" not in pairs["prompt"][:]
    assert set(pairs["rejected"]) == {"bad"}
    assert not {question for question in list_questions(fake) if "long" not in question} & answered


def test_pairs_that_the_judge_left_out_are_counted(fake):
    answer_all(fake)
    _, counts = synthesize_preferences(SAMPLES, "rlaif", judge=ServerJudge(fake.url, "judge"))
    assert counts["not_judged"] == 1


def test_a_language_model_in_process_keeps_its_answers_too(tmp_path):
    """A kill in the middle of RLAIF with a model on the GPU. Each pair takes two rows, and each batch has one."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer, initializer_range=1.0)
    pairs = ["?"] * 4, [f"good {row}" for row in range(4)], ["bad"] * 4
    expected = language_model_judge(model, tokenizer)(*pairs)
    calls = []

    def count(module, inputs, outputs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt

    model.register_forward_hook(count)
    settings = {"tokens_per_batch": 1, "cache": tmp_path / "answers.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        language_model_judge(model, tokenizer, **settings)(*pairs)
    assert language_model_judge(model, tokenizer, **settings)(*pairs) == pytest.approx(expected, abs=1e-6)
    assert len(calls) == 6 + 3


def test_a_pair_beyond_the_context_of_a_language_model_is_left_out(caplog):
    """One of four pairs was longer than the judge's context, and ended a run over 20,000 prompts."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer, initializer_range=1.0, max_position_embeddings=512)
    judge = language_model_judge(model, tokenizer)
    prompts, firsts, seconds = ["?"] * 4, ["good", "good " * 99, "good", "good"], ["bad"] * 4
    result = judge(prompts, firsts, seconds)
    assert result[1] is None and result[::2] == pytest.approx(judge(["?"] * 2, ["good"] * 2, ["bad"] * 2), abs=1e-5)
    assert judge.refused == 1 and "pair 1 ('?'). The reason for pair 1: The question has" in caplog.text


# Groups and synthetic preferences


def test_groups_of_a_killed_stage_are_kept(tmp_path, monkeypatch):
    """A killed run had compared the completions of 256 of 600 prompts. The next one compares those of the others."""
    completions = [["red", f"blue {row}", "red "] for row in range(600)]
    columns = {"prompt": [f"{row}?" for row in range(600)], "completions": completions, "finished": [[True] * 3] * 600}
    save_data(Dataset.from_dict(columns), tmp_path / "samples")
    calls = []
    compare = SameText.are_equivalent

    def interrupted(self, prompts, firsts, seconds):
        calls.append(prompts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compare(self, prompts, firsts, seconds)

    monkeypatch.setattr(SameText, "are_equivalent", interrupted)
    arguments = tmp_path / "samples", SameText(), 0.9, True
    with pytest.raises(KeyboardInterrupt):
        group_samples(tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "data").exists()
    group_samples(tmp_path / "run", *arguments)
    assert {prompt for prompts in calls[2:] for prompt in prompts} == {f"{row}?" for row in range(256, 600)}
    group_samples(tmp_path / "one", *arguments)
    assert load_data(tmp_path / "run").to_list() == load_data(tmp_path / "one").to_list()


class CountingJudge:
    """Prefers the first completion, and counts the pairs of all calls. The second call is interrupted."""

    def __init__(self):
        self.pairs = []

    def __call__(self, prompts, firsts, seconds):
        if len(self.pairs) == 1:
            self.pairs.append(0)
            raise KeyboardInterrupt
        self.pairs.append(len(prompts))
        return [0.9] * len(prompts)


@pytest.fixture
def judge(monkeypatch):
    judge = CountingJudge()
    monkeypatch.setattr(prefer, "load_policy", lambda model: (model, None))
    monkeypatch.setattr(prefer, "language_model_judge", lambda *_: judge)
    return judge


@pytest.fixture
def rlaif(tmp_path):
    rows = [{"prompt": f"{row}?", "completions": ["x", "y", "z"], "finished": [True] * 3} for row in range(600)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = ["--samples", str(tmp_path / "samples.jsonl")]
    return ["prefer", *samples, "--generator", "rlaif", "--judge_model", "judge", "--output_dir"]


def test_labels_of_a_killed_prefer_are_kept(tmp_path, judge, rlaif):
    """
    `trl-rlp prefer` was killed after it had labeled 256 of 600 prompts.

    Right: the second call labels the other 344, and the files are those of one call.
    """
    with pytest.raises(KeyboardInterrupt):
        main([*rlaif, str(tmp_path / "out")])
    assert not (tmp_path / "out" / "preferences.jsonl").exists()
    assert main([*rlaif, str(tmp_path / "out")]) == 0
    assert judge.pairs == [256, 0, 256, 88]
    assert main([*rlaif, str(tmp_path / "one")]) == 0
    found, expected = (load_rows(str(tmp_path / name / "preferences.jsonl")).to_list() for name in ("out", "one"))
    assert found == expected and [row["sample_row"] for row in found] == list(range(600))


def test_the_folder_of_a_killed_prefer_belongs_to_its_settings(tmp_path, judge, rlaif, capsys):
    """Labels of two settings must not be mixed. The killed call still resumes."""
    with pytest.raises(KeyboardInterrupt):
        main([*rlaif, str(tmp_path / "out")])
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert main([*rlaif, str(tmp_path / "out"), "--seed", "7"]) == 2
    assert "`seed` was 42 and is 7" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert main([*rlaif, str(tmp_path / "out")]) == 0


def test_prefer_never_claims_the_folder_of_another_run(tmp_path, judge, rlaif, capsys):
    """A user passed the folder of a finished `trl-rlp run`. It is refused before any work, and stays as it is."""
    run = RunFolder(tmp_path / "out", {"sft_model": "a", "seed": 0})
    run.stage("policy", lambda folder: {"reward": 1.0})
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert main([*rlaif, str(run.path)]) == 2
    assert "belongs to another command" in capsys.readouterr().err and judge.pairs == []
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("wrong", [["--threshold", "2"], ["--chosen", "best"], ["--generator", "spg"]])
def test_wrong_arguments_leave_the_folder_free(tmp_path, judge, rlaif, wrong):
    """A user mistyped an option. The corrected call may use the same folder."""
    assert main([*rlaif, str(tmp_path / "out"), *wrong, "--equivalence", "exact"]) == 2
    assert not (tmp_path / "out").exists() and judge.pairs == []
