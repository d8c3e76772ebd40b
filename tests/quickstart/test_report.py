import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from trl_rlp.quickstart.questions import WRONG_MAJORITY_KINDS
from trl_rlp.quickstart.report import (
    collect_comparisons,
    describe_difference,
    describe_reductions,
    find_wrong_kinds,
    format_share,
    print_summary,
    write_page,
)


OUTCOME = json.loads((Path(__file__).parent / "outcome.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(OUTCOME, tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def get_text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.mark.parametrize(
    "text",
    [
        "0.411 0.301 – 0.521 0.990 0.0000",  # policies
        "0.433 0.323 – 0.543 0.970 0.0246",
        "π̂ (against r̂) minus π (against r): -0.057 ± 0.012: worse",
        "human, no label flipped 81 0.654 0.765 +0.111 ± 0.040: better 0.111 0.122 0.444",  # reward models
        "human, as labeled (gates) 81 0.601 0.512 -0.089 ± 0.050: worse, within two standard errors of no difference",
        "The gate warned: human pairs: accuracy fell from 0.601 to 0.512",
        "spg 2 1 0.876 1",  # synthetic preferences
        "select_all 3 2 – 1",
        "2 accepted, 1 below γ, of 3 questions",
        "20 of 81 labels are flipped, and a model that knows every answer would reach 0.753",
        "What is 9 minus 4? 0.60 13 ✗ 7 ✗ 5",
        "Who wrote Emma? 0.20 below γ Emma ✗ Jane Austen",
        "129 pairs, 31 with a flipped label",
        "(seed 2403). Training and sampling use seed 7.",
        "taken 2.3 times as long as two free cores. The rest of the work was changed",
        "432 s",
        "not evidence",
        "simulated from the known answers",
    ],
)
def test_the_page_shows_the_metrics(page, text):
    assert text in get_text(page)


def test_the_page_lists_the_kinds_with_a_wrong_majority(page):
    text = get_text(page)
    kept = ", ".join(WRONG_MAJORITY_KINDS)
    assert "kept on purpose , although the majority of the model's completions was mostly wrong" in text
    assert f"in earlier runs: {kept}. For these kinds" in text
    assert "In this run the majority was wrong at least as often as right for: who, minus" in text
    assert find_wrong_kinds(OUTCOME["kinds"][:1]) == []


def test_the_page_has_no_scripts_and_no_external_files(page):
    class SourceFinder(HTMLParser):
        found = []

        def handle_starttag(self, tag, attributes):
            values = dict(attributes)
            self.found += [tag] if tag in {"script", "link", "img", "iframe"} else []
            self.found += [values["src"]] if "src" in values else []

    parser = SourceFinder()
    parser.feed(page)
    assert parser.found == []
    assert "@import" not in page and "url(http" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<svg") == 3


def test_equal_outcomes_give_equal_pages(page, tmp_path):
    assert write_page(OUTCOME, tmp_path / "again.html").read_text(encoding="utf-8") == page


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


def test_differences_within_two_standard_errors_are_marked():
    assert describe_difference(0.05, 0.02) == "+0.050 ± 0.020: better"
    assert describe_difference(-0.05, 0.02) == "-0.050 ± 0.020: worse"
    assert describe_difference(0.03, 0.02).endswith("better, within two standard errors of no difference")
    assert describe_difference(0.0, 0.0).endswith("no difference")
    assert describe_difference(1.0, None) == "+1.000: on a single pair"
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
