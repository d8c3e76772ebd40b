import json
import re
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from rich.console import Console

from tests.report.run_folders import write_run
from trl_rlp.quickstart.questions import WRONG_MAJORITY_KINDS
from trl_rlp.quickstart.report import (
    build_page,
    collect_comparisons,
    describe_reductions,
    find_wrong_kinds,
    format_share,
    is_quickstart_run,
    print_summary,
    rewrite_page,
)
from trl_rlp.report import plots
from trl_rlp.report.elements import Image, Section, Text
from trl_rlp.report.page import render_page
from trl_rlp.storage.artifacts import save_data
from trl_rlp.storage.json_files import write_json


OUTCOME = json.loads((Path(__file__).parent / "outcome.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page():
    return render_page(*build_page(OUTCOME, {}))[0]


def get_text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def read_questions(page):
    data = json.loads(re.search(r'id="rows-questions">(.*?)</script>', page)[1])
    return [column[0] for column in data["columns"]], data["rows"]


@pytest.mark.parametrize(
    "text",
    [
        "0.411 0.301 – 0.521 0.990 0.000",  # policies
        "0.433 0.323 – 0.543 0.970 0.0246",
        "π̂ (against r̂) minus π (against r) -0.057 ± 0.012: worse",
        "human, no label flipped 81 0.654 0.765 +0.111 ± 0.040: better 0.111 0.122 0.444",  # reward models
        "human, as labeled (gates) 81 0.601 0.512 -0.089 ± 0.050: worse, within two standard errors of no difference",
        "The gate warned: human pairs: accuracy fell from 0.601 to 0.512",
        "spg 2 1 0.876 1",  # synthetic preferences
        "select_all 3 2 – 1",
        "2 accepted, 1 below γ, of 3 questions",
        "20 of 81 labels are flipped, and a model that knows every answer would reach 0.753",
        "129 pairs, 31 with a flipped label",
        "(seed 2403). Training and sampling use seed 7.",
        "taken 2.3 times as long as two free cores. The rest of the work was changed",
        "whole call 432",
        "not evidence",
        "simulated from the known answers",
    ],
)
def test_the_page_shows_the_metrics(page, text):
    assert text in get_text(page)


def test_the_page_lists_the_kinds_with_a_wrong_majority(page):
    text = get_text(page)
    kept = ", ".join(WRONG_MAJORITY_KINDS)
    assert "kept on purpose, although the majority of the model&#39;s completions was mostly wrong" in text
    assert f"in earlier runs: {kept}. For these kinds" in text
    assert "In this run the majority was wrong at least as often as right for: who, minus" in text
    assert find_wrong_kinds(OUTCOME["kinds"][:1]) == []


def test_the_page_lists_every_question_with_its_pair(page):
    names, rows = read_questions(page)
    assert names == ["question", "kind", "confidence", "status", "majority", "chosen", "rejected", "known answer"]
    assert rows == [
        ["What is 2 plus 2?", "sum", 0.7, "accepted", "4 ✓", "4 ✓", "<script>alert(1)</script> ✗", "4"],
        ["What is 9 minus 4?", "minus", 0.6, "accepted", "13 ✗", "13 ✗", "7 ✗", "5"],
        ["Who wrote Emma?", "who", 0.2, "below γ", "Emma ✗", None, None, "Jane Austen"],
    ]
    assert "alert(1)" in page and "<script>alert(1)" not in page
    assert page.count('<img alt="') == 4


def test_the_sections_of_a_report_come_after_the_own_ones():
    names = ("run", "reward_models", "prompts", "samples")
    sections = {name: Section(name, [Text(f"of {name}")]) for name in names}
    titles = [section.title for section in build_page(OUTCOME, sections)[2]]
    assert titles == [
        "Steps",
        "Policies",
        "Reward model before and after refinement",
        "Synthetic preferences",
        "Kinds of question",
        "All questions",
        "prompts",
        "samples",
        "run",
        "Time and machine",
    ]


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "render_svg", lambda figure, title: Image("<svg/>", title))  # test_plots.py tests it
    folder = write_run(tmp_path / "run")
    write_json(folder / "outcome.json", OUTCOME)
    return folder


def test_a_finished_run_can_be_written_again(finished_run):
    assert is_quickstart_run(finished_run) and not is_quickstart_run(finished_run / "gate")
    page = rewrite_page(finished_run)
    assert page == finished_run / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "not evidence" in text and "Samples side by side" in text and 'id="rows-questions"' in text
    # "All questions" has no completions, so the table of the report that has them stays.
    (prompts,) = re.findall('id="rows-prompts">(.*?)</script>', text)
    assert ["completions", "texts", "detail"] in json.loads(prompts)["columns"]


def test_a_damaged_row_of_a_stage_is_not_blamed_on_the_outcome(finished_run):
    data = finished_run / "evaluation" / "policy" / "data"
    rows = Dataset.load_from_disk(str(data)).to_list()
    shutil.rmtree(data)
    save_data(Dataset.from_list([{**row, "finished": ["yes"] * 4} for row in rows]), data.parent)
    with pytest.raises(ValueError, match=r"data' is damaged \(row 0: `finished.0` is 'yes'.*\). Delete the") as error:
        rewrite_page(finished_run)
    assert str(error.value).startswith(f"'{data}'") and "outcome.json" not in str(error.value)


@pytest.mark.parametrize("part", ["policies", "kinds", "machine"])
def test_a_damaged_outcome_is_named(finished_run, part):
    write_json(finished_run / "outcome.json", {name: value for name, value in OUTCOME.items() if name != part})
    with pytest.raises(ValueError, match=rf"outcome.json' is damaged \('{part}'\). Run `trl-rlp quickstart` again"):
        rewrite_page(finished_run)


def test_a_damaged_question_is_named(finished_run):
    questions = [{**OUTCOME["questions"][0], "chosen_right": None}, dict(OUTCOME["questions"][1])]
    del questions[1]["answer"]
    write_json(finished_run / "outcome.json", {**OUTCOME, "questions": questions})
    with pytest.raises(ValueError, match=r"outcome.json' is damaged \('answer'\). Run `trl-rlp quickstart` again"):
        rewrite_page(finished_run)


def test_a_folder_as_the_output_is_an_error_before_any_work(finished_run, tmp_path):
    (finished_run / "outcome.json").write_text("{")
    with pytest.raises(ValueError, match="`output` .* is a folder. Pass the name of a file, such as '.*report.html'"):
        rewrite_page(finished_run, tmp_path)


def test_the_summary_shows_the_same_metrics(tmp_path):
    path = tmp_path / "screen.txt"
    with path.open("w") as file:
        print_summary(OUTCOME, Console(file=file, width=160))
    summary = " ".join(re.sub("[│┃─━┏┓┗┛└┘┌┐┳┻┬┴╇╋┡┩┼├┤]", " ", path.read_text()).split())
    for text in (
        "at γ = 0.5: 2 accepted, 1 below γ, of 3 questions",
        "decide 1 pairs. The chosen side is right in 0.876 of them (select_all: – of 2)",
        "human, no label flipped 81 0.654 0.765 +0.111 ± 0.040",
        "Gate: not passed. human pairs: accuracy fell",
        "accuracy on 74 held-out questions, 4 samples each at T = 0.7",
        "π̂ (against r̂) 0.433 0.323 – 0.543 0.0246",
        "π̂ against π: -0.057 ± 0.012: worse.",
        "not evidence",
    ):
        assert text in summary, text


def test_an_unknown_share_is_a_dash():
    assert format_share(None) == "–" and format_share(0.12345) == "0.123"


def test_a_full_run_describes_no_reduction():
    sizes = {"policy_rollouts": 6, "retrained_policy_rollouts": 6}
    assert describe_reductions({"plans": {"preferences": {"changes": "", "slowdown": 0.8}}, "sizes": sizes}) == []


def test_reductions_are_described_and_an_unfair_comparison_is_named():
    assert describe_reductions(OUTCOME) == [
        "Step 3: policy π by PPO against r: before this stage, the machine had taken 2.3 times as long as two free "
        "cores. The rest of the work was changed to fit the time budget: 4 instead of 6 policy rollouts.",
        "π̂ was trained on 3 rollouts and π on 4, so the comparison of π̂ with π is not fair.",
    ]


def test_comparisons_that_gate_come_first_and_agreement_with_synthetic_pairs_last():
    assert list(collect_comparisons(OUTCOME)) == [
        "human, as labeled (gates)",
        "human, no label flipped",
        "agreement with D̂ itself (never gates)",
    ]
