import pytest
from datasets import Dataset

from tests.report.run_folders import write_preferences
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.report.elements import Figure, RowTable, Table, Text
from trl_rlp.report.preference_sections import (
    build_acceptance_section,
    build_anchor_section,
    build_prompt_section,
    label_completions,
    name_prompt_section,
)
from trl_rlp.report.rows import Rows
from trl_rlp.report.run_contents import Round


GROUPS = Rows(
    [
        {
            "prompt": "2 + 2?",
            "completions": ["4", "four", "5", ""],
            "finished": [True, True, False, True],
            "cluster_ids": [0, 0, 1, -1],
            "confidence": 0.5,
            "confidence_upper": 0.5,
        },
        {"prompt": "a", "completions": ["b", "c"], "cluster_ids": [0, 1], "confidence": 0.5, "confidence_upper": 0.5},
        {"prompt": "d", "completions": ["e", "e"], "cluster_ids": [0, 0], "confidence": 1.0, "confidence_upper": 1.0},
        {
            "prompt": "f",
            "completions": ["g", "h"],
            "cluster_ids": [0, -1],
            "confidence": 0.25,
            "confidence_upper": 0.4,
        },
    ]
)
PAIR = {
    "prompt": "2 + 2?",
    "chosen": "4",
    "rejected": "5",
    "sample_row": 0,
    "confidence": 0.5,
    "chosen_reward": 1.5,
    "rejected_reward": 0.5,
}
DATA = Round(1, GROUPS, Rows([PAIR]), ["4", ["b"], "e", ["g"]], {"all_agree": 1}, 0.5)


def read_table(section):
    (table,) = (element for element in section.elements if isinstance(element, RowTable))
    rows = table.read(range(table.size))
    return [{column.name: cell for column, cell in zip(table.columns, row, strict=True)} for row in rows]


def test_prompts_have_confidence_status_pair_and_label():
    rows = read_table(build_prompt_section(DATA, "prompts", "Prompts"))
    assert [row["status"] for row in rows] == ["pair", "single member", "all agree", "below γ"]
    assert rows[0] | {"completions": None} == {
        "prompt": "2 + 2?",
        "confidence": 0.5,
        "status": "pair",
        "chosen": "4",
        "rejected": "5",
        "reward of chosen": 1.5,
        "reward of rejected": 0.5,
        "label": "right",
        "known answer": "4",
        "completions": None,
    }
    assert rows[1]["chosen"] is None and rows[1]["label"] is None and rows[1]["known answer"] == "b"
    assert rows[0]["completions"] == [
        ["4", "group 0 · right"],
        ["four", "group 0 · wrong"],
        ["5", "group 1 · unfinished · wrong"],
        ["", "no group · wrong"],
    ]


@pytest.mark.parametrize("order", [[3, 0, 2], [0], []])
def test_rows_are_read_in_any_order(order):
    (table,) = (e for e in build_prompt_section(DATA, "prompts", "").elements if isinstance(e, RowTable))
    whole = table.read(range(table.size))
    assert table.read(order) == [whole[number] for number in order]


@pytest.mark.parametrize(
    ("chosen", "rejected", "label"),
    [("4", "5", "right"), ("5", "4", "wrong"), ("5", "6", "neither side right"), ("4", "4.", "both sides right")],
)
def test_labels_are_compared_with_the_known_answer(chosen, rejected, label):
    data = Round(1, GROUPS, Rows([{**PAIR, "chosen": chosen, "rejected": rejected}]), ["4"] * 4, threshold=0.5)
    assert read_table(build_prompt_section(data, "prompts", ""))[0]["label"] == label


def test_columns_without_data_are_left_out():
    samples = Rows([{"prompt": "a", "completions": ["b"]}])
    assert read_table(build_prompt_section(Round(prompts=samples), "prompts", "")) == [
        {"prompt": "a", "completions": [["b", ""]]}
    ]
    assert build_prompt_section(Round(), "prompts", "") is None


def test_preferences_alone_have_pairs_and_counts_but_no_curve(tmp_path):
    """The shards hold only the reason of a prompt without a pair. A curve would show that all prompts are accepted."""
    pairs, counts = write_preferences(tmp_path)
    (data,) = read_contents(tmp_path).rounds
    assert len(pairs) == 3 and counts["below_threshold"] == 7 and len(data.pairs) == 10
    assert build_acceptance_section(data, "") is None
    section = build_prompt_section(data, "prompts", name_prompt_section(data))
    assert section.title == "Synthetic preferences"
    assert section.elements[0].text == "Prompts without a pair, by reason: below threshold: 7."
    assert "no curve of acceptance" in section.elements[1].text
    assert read_table(section) == [
        {"prompt": row["prompt"], "confidence": 0.75, "chosen": "4", "rejected": "5"} for row in pairs.to_list()
    ]
    assert build_acceptance_section(Round(pairs=Rows(pairs)), "") is None
    no_pairs = Round(pairs=Rows(data.pairs.take(range(3, 10))), counts=data.counts)
    (text,) = build_prompt_section(no_pairs, "prompts", "").elements
    assert "below threshold: 7" in text.text


def test_a_prompt_has_a_status_only_if_pairs_were_made():
    """A run with views of one group, or one that stopped before its pairs, has groups only."""
    rows = read_table(build_prompt_section(Round(prompts=GROUPS, threshold=0.5), "prompts", ""))
    assert [row["confidence"] for row in rows] == [0.5, 0.5, 1.0, 0.25] and "status" not in rows[0]


@pytest.mark.parametrize(
    ("data", "title"),
    [
        (DATA, "Prompts, groups and pairs"),
        (Round(prompts=GROUPS), "Prompts and groups"),
        (Round(prompts=Rows([{"prompt": "a", "completions": ["b"]}]), pairs=Rows([PAIR])), "Prompts and pairs"),
        (Round(prompts=Rows([{"prompt": "a", "completions": ["b"]}])), "Prompts and completions"),
    ],
)
def test_the_title_says_what_the_table_has(data, title):
    assert name_prompt_section(data) == title
    caption = build_prompt_section(data, "prompts", title).elements[0].text
    assert ("their groups" in caption) == ("groups" in title)


def test_acceptance_has_both_curves_only_with_known_answers():
    """At γ = 0.5, three of four prompts are accepted, and the only pair is right."""
    section = build_acceptance_section(DATA, "Acceptance")
    figure, table, text = section.elements
    assert isinstance(figure, Figure) and len(figure.images) == 2 and figure.shows and figure.limits
    assert [row for row in table.rows if row[0] == 0.5] == [[0.5, 0.75, 0.75, 1, 1, 1.0]]
    assert text.text == "Prompts without a pair, by reason: all agree: 1."

    section = build_acceptance_section(Round(1, GROUPS, Rows([PAIR]), None, {}, 0.5), "Acceptance")
    figure, table, text = section.elements
    assert len(figure.images) == 1 and "no known answers" in text.text
    assert isinstance(table, Table) and table.columns[-1] == "pairs"


def test_answers_that_decide_no_pair_are_named():
    figure, _, text = build_acceptance_section(Round(1, GROUPS, Rows([PAIR]), ["7"] * 4, {}, 0.5), "").elements
    assert len(figure.images) == 1 and "decide no pair" in text.text


def test_without_confidences_there_is_no_curve():
    assert build_acceptance_section(Round(prompts=Rows([{"prompt": "a", "completions": []}])), "") is None
    assert build_acceptance_section(Round(pairs=Rows([{"prompt": "a", "confidence": None}])), "") is None


def test_completions_have_the_rewards_of_each_model():
    row = {"prompt": "a", "completions": [[{"role": "assistant", "content": "b"}]]}
    assert label_completions(row, rewards={"r": [0.25]}) == [["b", "r 0.250"]]


def test_anchors_are_listed():
    rows = Dataset.from_list(
        [
            {"prompt": "a", "anchor": "b", "members": ["b", "B"], "confidence": 1.0, "reason": None},
            {"prompt": "c", "anchor": None, "members": [], "confidence": 0.2, "reason": "below_threshold"},
        ]
    )
    section = build_anchor_section(Rows(rows))
    assert isinstance(section.elements[0], Text)
    assert [(row["status"], row["anchor"]) for row in read_table(section)] == [
        ("anchor", "b"),
        ("below threshold", ""),
    ]
    assert read_table(section)[0]["members"] == [["b", ""], ["B", ""]]
