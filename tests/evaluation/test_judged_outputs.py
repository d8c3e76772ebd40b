import json
from types import SimpleNamespace

import pytest

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import add_user_turns, function_judge, reward_judge
from trl_rlp.evaluation.alpaca_eval import annotate, read_annotations
from trl_rlp.evaluation.judged_outputs import JUDGES, judge_outputs, load_judge, read_matching_outputs


class UnreadableJudge(AskedJudge):
    """Returns draws, and counts one of two answers as unreadable."""

    def __call__(self, prompts, firsts, seconds):
        self.asked, self.unreadable = 2 * len(prompts), len(prompts)
        return [0.5] * len(prompts)


def build_outputs(texts):
    return [{"instruction": f"{row}?", "output": text} for row, text in enumerate(texts)]


REFERENCE, OUTPUTS, OTHERS = (build_outputs(texts) for texts in (["aa", "bb"], ["a", "bbb"], ["aaa", "b"]))


def test_outputs_are_judged_and_annotations_are_saved(tmp_path):
    judge = function_judge(lambda prompt, output: len(output))
    outputs = {"outputs": OUTPUTS, "other_outputs": OTHERS}
    annotations, counts = judge_outputs(tmp_path / "new", outputs, REFERENCE, judge, "length", tolerance=0)
    assert counts is None
    assert annotations == [annotate(rows, REFERENCE, judge, "length") for rows in (OUTPUTS, OTHERS)]
    files = ("annotations.json", "other_annotations.json")
    assert [read_annotations(tmp_path / "new" / file) for file in files] == annotations


def test_annotations_are_saved_before_unreadable_answers_raise_an_error(tmp_path):
    arguments = {"outputs": OUTPUTS}, REFERENCE, UnreadableJudge(1.0), "unreadable"
    with pytest.raises(ValueError, match="2 of 4 answers .* The annotations are in .* Pass them as `annotations`"):
        judge_outputs(tmp_path, *arguments, tolerance=0.4)
    assert [row["preference"] for row in read_annotations(tmp_path / "annotations.json")] == [1.5, 1.5]
    counts = {"asked": 4, "unreadable": 2, "cut": 0, "refused": 0}
    assert judge_outputs(tmp_path, *arguments, tolerance=0.5)[1] == counts


def test_outputs_of_other_instructions_raise_an_error(tmp_path):
    paths = {name: tmp_path / f"{name}.json" for name in ("reference", "outputs", "other_outputs")}
    for path, rows in zip(paths.values(), (REFERENCE, OUTPUTS, OTHERS), strict=True):
        path.write_text(json.dumps(rows))
    reference = paths.pop("reference")
    assert read_matching_outputs(paths, reference) == ({"outputs": OUTPUTS, "other_outputs": OTHERS}, REFERENCE)
    paths["other_outputs"].write_text(json.dumps(OTHERS[:1]))
    with pytest.raises(ValueError, match="`other_outputs` lacks 1 of the 2 instructions"):
        read_matching_outputs(paths, reference)


@pytest.mark.parametrize("is_main_process", [True, False])
def test_only_the_main_process_asks_a_server(tmp_path, monkeypatch, is_main_process):
    module = "trl_rlp.evaluation.judged_outputs"
    monkeypatch.setattr(f"{module}.process_state", lambda: SimpleNamespace(is_main_process=is_main_process))
    judge = load_judge("server", "name", base_url="http://nowhere/v1", cache=tmp_path / "answers.jsonl")
    assert (tmp_path / "answers.jsonl").exists() == is_main_process

    def run_on_main(work):
        return work() if is_main_process else ("from the main process",)

    monkeypatch.setattr(f"{module}.run_on_main", run_on_main)
    monkeypatch.setattr(type(judge), "__call__", lambda self, prompts, *_: [1.0] * len(prompts))
    annotations, _ = judge_outputs(tmp_path, {"outputs": OUTPUTS}, REFERENCE, judge, "server", tolerance=1)
    assert (tmp_path / "annotations.json").exists() == is_main_process
    expected = [annotate(OUTPUTS, REFERENCE, judge, "server")] if is_main_process else ("from the main process",)
    assert annotations == expected


def test_unknown_kind_of_judge_is_an_error():
    message = r"`kind` must be one of \['reward_model', 'language_model', 'server'\], got 'oracle'"
    with pytest.raises(ValueError, match=message):
        load_judge("oracle", "name")


def test_kind_of_judge_is_added_by_its_loader(monkeypatch):
    monkeypatch.setitem(JUDGES, "new", lambda model, **settings: (model, settings))
    settings = {"max_length": 5, "base_url": "url", "api_key": "key", "max_tokens": 2, "cache": "answers"}
    settings["model_options"] = {"dtype": "bfloat16"}
    assert load_judge("new", "name", **settings) == ("name", settings)


@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.parametrize("chat", [False, True])
def test_judges_are_loaded(tmp_path, kind, chat):
    tokenizer = tiny_tokenizer(chat=chat)
    if kind == "server":
        judge = load_judge(kind, "name", base_url="http://localhost:1/v1")
        assert isinstance(judge, AskedJudge) and judge.tolerance == 1
        return
    model = tiny_causal_lm(tokenizer) if kind == "language_model" else tiny_reward_model(tokenizer)
    judge = load_judge(kind, save(model, tokenizer, tmp_path / "judge"), max_length=50)
    if kind == "language_model":
        assert isinstance(judge, AskedJudge) and judge.tolerance == 1
        return
    expected = reward_judge(model, tokenizer, max_length=50)
    expected = add_user_turns(expected) if chat else expected
    pairs = ["1?", "2?"], ["a", "b"], ["c", "d"]
    assert judge(*pairs) == pytest.approx(expected(*pairs))


@pytest.mark.parametrize("tolerance", [5, -0.1])
def test_a_tolerance_that_is_no_share_is_an_error_before_the_judge_is_asked(tmp_path, tolerance):
    with pytest.raises(ValueError, match=rf"`tolerance` is a share of the answers, in \[0, 1\], got {tolerance}\."):
        judge_outputs(tmp_path, {"outputs": OUTPUTS}, REFERENCE, None, "none", tolerance=tolerance)
