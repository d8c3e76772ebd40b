"""Runs `trl-rlp evaluate` on tiny models and files."""

import json

import pytest

from tests.servers import FakeServer
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.cli import main
from trl_rlp.data.scoring import score
from trl_rlp.evaluation.alpaca_eval import read_annotations


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("models")
    settings = {"max_position_embeddings": 1024}
    return {
        "policy": save(tiny_causal_lm(tokenizer, **settings), tokenizer, folder / "policy"),
        "reference": save(tiny_causal_lm(tokenizer, seed=1, **settings), tokenizer, folder / "reference"),
        "reward": save(tiny_reward_model(tokenizer), tokenizer, folder / "reward"),
    }


def write_rows(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def outputs(tmp_path):
    texts = {"outputs": "own answer {}", "reference_outputs": "{} as the reference has it", "other_outputs": "other"}
    return {
        name: write_rows(
            tmp_path / f"{name}.json",
            [{"instruction": f"{row}?", "output": text.format(row), "generator": name} for row in range(6)],
        )
        for name, text in texts.items()
    }


def evaluate(tmp_path, *words, folder="out"):
    assert main(["evaluate", "--output_dir", str(tmp_path / folder), *map(str, words)]) == 0
    return json.loads((tmp_path / folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def flags(**values):
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def test_a_reward_model_judges_outputs_and_two_policies_are_compared(tmp_path, models, outputs, capsys):
    found = evaluate(tmp_path, *flags(**outputs, judge_model=models["reward"]))
    rows = read_annotations(tmp_path / "out" / "annotations.json")
    chats = [[{"role": "user", "content": row["instruction"]}] for row in rows]
    own, reference = (
        score(tiny_reward_model(tiny_tokenizer()), tiny_tokenizer(), chats, [row[name] for row in rows])
        for name in ("output_2", "output_1")
    )
    assert [row["preference"] > 1.5 for row in rows] == [a > b for a, b in zip(own, reference, strict=True)]
    assert found["win_rate"]["prompts"] == found["comparison"]["prompts"] == 6
    difference = found["win_rate"]["win_rate"] - found["other_win_rate"]["win_rate"]
    assert found["comparison"]["difference"] == pytest.approx(difference)
    printed = capsys.readouterr().out
    assert "win_rate: 0." in printed and "at equal length" in printed and "difference: " in printed
    # The annotations can be read again without a judge.
    annotations = {f"{name}annotations": tmp_path / "out" / f"{name}annotations.json" for name in ("", "other_")}
    assert evaluate(tmp_path / "again", *flags(**annotations)) == found
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Win rates</h2>" in page and "Judged pairs: other_outputs" in page


@pytest.mark.parametrize("judge", ["language_model", "server"])
def test_other_judges(tmp_path, models, outputs, judge, capsys):
    words = flags(**{name: outputs[name] for name in ("outputs", "reference_outputs")}, judge=judge)
    if judge == "language_model":
        words += flags(judge_model=models["policy"])
        found = evaluate(tmp_path, *words, *flags(tolerance=1))
        assert found["win_rate"]["prompts"] == 6
        assert found["judge"]["asked"] == 12 and found["judge"]["unreadable"] > 6
        # A model with random weights rarely answers A or B. The annotations are saved anyway.
        assert main(["evaluate", "--output_dir", str(tmp_path / "strict"), *words]) == 2
        assert "of 12 answers of the judge name neither A nor B alone: more than" in capsys.readouterr().err
        assert len(read_annotations(tmp_path / "strict" / "annotations.json")) == 6
        return
    server = FakeServer()
    choice = {"message": {"content": "A"}, "finish_reason": "stop"}
    server.respond = lambda request, number: (200, json.dumps({"choices": [choice]}), {})
    try:
        found = evaluate(tmp_path, *words, *flags(judge_model="judge", base_url=server.url))
    finally:
        server.server.shutdown()
        server.server.server_close()
    assert found["win_rate"]["draws"] == 6 and len(server.requests) == 12
    assert found["judge"] == {"asked": 12, "unreadable": 0, "cut": 0, "refused": 0}


def test_a_reward_model_is_evaluated_on_pairs(tmp_path, models, capsys):
    pairs = [{"prompt": f"{row}?", "chosen": "yes", "rejected": "no!"} for row in range(4)]
    found = evaluate(
        tmp_path, *flags(reward_model=models["reward"], preferences=write_rows(tmp_path / "pairs.json", pairs))
    )
    assert found["reward_model"]["pairs"] == 4 and "sections" not in found["reward_model"]
    pairs = [{**pair, "subset": "hep-go" if row else "own"} for row, pair in enumerate(pairs)]
    words = flags(reward_model=models["reward"], preferences=write_rows(tmp_path / "pairs.json", pairs))
    found = evaluate(tmp_path, *words, folder="subsets")
    assert set(found["reward_model"]["sections"]) == {"Reasoning", "average"}
    assert "Reasoning: " in capsys.readouterr().out
    renamed = [{"question": pair.pop("prompt"), **pair} for pair in pairs]
    words = flags(reward_model=models["reward"], preferences=write_rows(tmp_path / "renamed.json", renamed))
    assert evaluate(tmp_path, *words, folder="renamed") == found


def test_policy_samples_are_evaluated(tmp_path, models):
    samples = [{"prompt": "a", "completions": ["b", "cc"], "finished": [True, False], "answers": ["b"]}]
    path = write_rows(tmp_path / "samples.json", samples)
    found = evaluate(tmp_path, *flags(samples=path))["policy"]
    assert (found["characters"], found["finished"], found["accuracy"]) == (1.5, 0.5, 0.5)
    names = {"policy": models["policy"], "reference_policy": models["reference"]}
    assert evaluate(tmp_path, *flags(samples=path, **names), folder="kl")["policy"]["kl"] > 0


ASKED = {"outputs": "a", "reference_outputs": "b", "judge_model": "c", "judge": "language_model"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Nothing to evaluate. Pass `outputs`, `annotations`, `preferences` or `samples`."),
        ({"outputs": "a"}, "`outputs` needs `reference_outputs`. Pass both."),
        ({"outputs": "a", "reference_outputs": "b"}, "`outputs` needs `judge_model`. Pass both."),
        ({"reward_model": "a"}, "`reward_model` needs `preferences`. Pass both."),
        ({"annotations": "a", "judge_model": "b"}, "`judge_model` needs `outputs`. Pass both."),
        ({"annotations": "a", "reference_outputs": "b"}, "`reference_outputs` needs `outputs`. Pass both."),
        ({"annotations": "no/such.json"}, "no/such.json cannot be read (No such file or directory). Pass a JSON list"),
        ({"annotations": "."}, ". cannot be read (Is a directory). Pass a JSON list"),
        ({"preferences": "a"}, "`preferences` needs `reward_model`. Pass both."),
        ({"samples": "a", "policy": "b"}, "`policy` needs `reference_policy`. Pass both."),
        ({"samples": "a", "judge": "oracle"}, "`judge` must be one of"),
        ({"annotations": "a", "other_outputs": "b"}, "`other_outputs` needs `outputs`. Pass both."),
        (
            {"outputs": "a", "reference_outputs": "b", "judge_model": "c", "annotations": "d"},
            "`outputs` and `annotations` are both passed.",
        ),
        (
            {"outputs": "a", "reference_outputs": "b", "judge_model": "c", "judge": "server"},
            '`judge`="server" needs `base_url`.',
        ),
        ({**ASKED, "tolerance": "5"}, "`tolerance` is a share of the answers, in [0, 1], got 5.0."),
        ({**ASKED, "tolerance": "-1"}, "`tolerance` is a share of the answers, in [0, 1], got -1.0."),
        ({"samples": "a", "judge": "server"}, "`judge` has no effect without `outputs`. Remove it."),
        ({"samples": "a", "tolerance": "1"}, "`tolerance` has no effect without a language judge."),
        ({**ASKED, "judge": "reward_model", "tolerance": "1"}, "`tolerance` has no effect without a language judge"),
        ({**ASKED, "base_url": "http://a"}, '`base_url` has no effect without `outputs` and `judge`="server".'),
        ({**ASKED, "max_tokens": "9"}, '`max_tokens` has no effect without `outputs` and `judge`="server".'),
        ({**ASKED, "timeout": "9"}, '`timeout` has no effect without `outputs` and `judge`="server". Remove it.'),
        ({"samples": "a", "api_key": "key"}, "`api_key` has no effect without `outputs` and"),
        ({"samples": "a", "anchors": "b"}, "`anchors` has no effect without `outputs` or `annotations`. Remove it."),
        ({**ASKED, "max_length": "9"}, "`max_length` has no effect without a reward model. Remove it."),
        ({"samples": "a", "inference_dtype": "float32"}, "`inference_dtype` has no effect if no model is loaded."),
    ],
)
def test_invalid_combinations_are_one_line(tmp_path, options, message, capsys):
    assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *flags(**options)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_of_an_earlier_evaluation_are_not_overwritten(tmp_path, models, outputs, capsys):
    words = ["evaluate", "--output_dir", str(tmp_path), *flags(judge_model=models["reward"])]
    words += flags(**{name: outputs[name] for name in ("outputs", "reference_outputs")})
    (tmp_path / "annotations.json").write_text("paid for")
    assert main(words) == 2
    assert "already has ['annotations.json']. Choose another `output_dir`" in capsys.readouterr().err
    assert (tmp_path / "annotations.json").read_text() == "paid for"


def test_no_judge_is_asked_before_all_files_match(tmp_path, outputs, capsys):
    rows = json.loads(open(outputs["other_outputs"]).read())
    outputs["other_outputs"] = write_rows(tmp_path / "fewer.json", rows[:-1])
    server = FakeServer()
    try:
        words = flags(**outputs, judge="server", judge_model="judge", base_url=server.url)
        assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *words]) == 2
    finally:
        server.server.shutdown()
        server.server.server_close()
    assert "`other_outputs` lacks 1 of the 6 instructions" in capsys.readouterr().err and not server.requests


def test_different_instructions_are_one_line(tmp_path, models, outputs, capsys):
    rows = json.loads(open(outputs["reference_outputs"]).read())
    outputs["reference_outputs"] = write_rows(tmp_path / "fewer.json", rows[:-1])
    words = flags(**outputs, judge_model=models["reward"])
    assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert "`reference_outputs` lacks 1 of the 6 instructions" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("judge", "folder", "kind"),
    [("language_model", "reward", "causal LM"), ("reward_model", "policy", "reward model with one label")],
)
def test_a_judge_of_another_kind_is_an_error(tmp_path, models, outputs, judge, folder, kind, capsys):
    words = flags(**outputs, judge=judge, judge_model=models[folder])
    assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *words]) == 2
    assert f"is not a {kind}. " in capsys.readouterr().err.splitlines()[-1]


def test_pairs_and_answers_of_the_wrong_type_are_one_line(tmp_path, models, capsys):
    pairs = write_rows(tmp_path / "pairs.json", [{"prompt": "a", "chosen": None, "rejected": "b"}])
    samples = write_rows(
        tmp_path / "samples.json",
        [{"prompt": "a", "completions": ["b", "c"], "finished": [True, True], "answers": 3}],
    )
    for words, match in (
        (
            flags(reward_model=models["reward"], preferences=pairs),
            "row 0: `chosen` must be text or a list of messages",
        ),
        (flags(samples=samples), "`answers` row 0 must be an accepted answer or a list of them"),
    ):
        assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *words]) == 2
        assert match in capsys.readouterr().err.splitlines()[-1]


CHECKED_FILES = {
    "preferences": ([{"prompt": "a"}], "`preferences` lacks the columns ['chosen', 'rejected']"),
    "samples": (
        [{"prompt": "a", "completions": ["b", "c"], "finished": [True, True], "answers": 3}],
        "`answers` row 0 must be an accepted answer",
    ),
    "anchors": (
        [dict.fromkeys(("preference", "index", "std_delta_len", "instruction_difficulty"), 1.0)],
        "There are 6 prompts, but `anchors` has 1 instructions",
    ),
}


@pytest.mark.parametrize("name", CHECKED_FILES)
def test_no_judge_is_loaded_before_all_files_are_checked(tmp_path, outputs, name, monkeypatch, capsys):
    monkeypatch.setattr("trl_rlp.cli.evaluate.load_judge", lambda *_, **__: pytest.fail("a judge was loaded"))
    rows, message = CHECKED_FILES[name]
    words = flags(**outputs, judge_model="j", **{name: write_rows(tmp_path / "rows.json", rows)})
    words += flags(reward_model="r") if name == "preferences" else []
    assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_reward_model_judges_again_after_an_evaluation_that_failed(tmp_path, models, capsys):
    """A failed evaluation has no metrics. The annotations of another judge stay."""
    rows = [{"instruction": f"{row}?", "output": "a" * row} for row in range(3)]
    files = {name: write_rows(tmp_path / f"{name}.json", rows) for name in ("outputs", "reference_outputs")}
    sample = {"prompt": "a", "completions": ["b", "cc"], "finished": [True, True]}
    files["samples"] = write_rows(tmp_path / "samples.json", [sample])
    words = flags(**files, judge_model=models["reward"])
    failing = [*words, *flags(policy="no/such", reference_policy="no/such")]
    assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *failing]) == 2
    assert (tmp_path / "out" / "annotations.json").exists() and "no/such" in capsys.readouterr().err
    other = [*words, *flags(judge_model=models["policy"])]
    assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *other]) == 2
    assert "already has ['annotations.json']. Choose another" in capsys.readouterr().err
    assert evaluate(tmp_path, *words)["win_rate"]["prompts"] == 3
    assert main(["evaluate", "--output_dir", str(tmp_path / "out"), *words]) == 2
    assert "already has ['metrics.json', 'annotations.json']. Choose" in capsys.readouterr().err
