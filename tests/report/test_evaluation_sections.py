import pytest

from trl_rlp.evaluation.annotation_report import describe_win_rates
from trl_rlp.evaluation.reward_report import describe_rewards
from trl_rlp.report.elements import RowTable, Table, Text
from trl_rlp.report.evaluation_sections import PAIR_METRICS, SAMPLE_METRICS, build_evaluation_sections
from trl_rlp.report.rows import Rows


def annotate(preferences, annotator="length"):
    rows = [{"instruction": f"{row}?", "output_1": "reference", "output_2": f"own {row}"} for row in range(4)]
    return [{**row, "annotator": annotator, "preference": value} for row, value in zip(rows, preferences, strict=True)]


def test_win_rates_of_two_policies_stand_in_one_table():
    """Preferences 1, 1, ½ and none are a win rate of 2.5 / 3. The other policy has 1, 0, ½ and none."""
    metrics = describe_win_rates([annotate([2, 2, 1.5, None]), annotate([2, 1, 0, None])])
    metrics["judge"] = {"asked": 8, "unreadable": 2, "cut": 1, "refused": 1}
    table, comparison, judge, _ = build_evaluation_sections(metrics, {})["win_rates"].elements
    first, second = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert first["outputs"] == "outputs" and second["outputs"] == "other_outputs"
    assert first["win rate"] == pytest.approx(2.5 / 3) and second["win rate"] == 0.5
    assert (first["wins"], first["draws"], first["losses"], first["prompts"]) == (2, 1, 0, 3)
    assert first["discrete"] == pytest.approx(2.5 / 3) and first["pairs without a preference"] == 1
    assert first["at equal length"] is None and first["95 % interval"].startswith("[")
    assert "paired by prompt: +0.333 [" in comparison.text and comparison.text.endswith("on 3 prompts.")
    assert judge.text.startswith("Of 8 answers of the judge, 2 name neither A nor B (1 were cut). 1 pairs")


def test_one_prompt_has_no_interval():
    one = annotate([2, None, None, None])
    table, comparison, _ = build_evaluation_sections(describe_win_rates([one, one]), {})["win_rates"].elements
    assert [row[3] for row in table.rows] == [None, None]
    assert comparison.text.endswith("paired by prompt: +0.000 on 1 prompts.")


def test_a_reward_model_has_accuracy_and_subsets():
    """The first two of the three pairs are ordered as labeled."""
    lengths = {"chosen": [2, 2, 3], "rejected": [1, 1, 1]}
    metrics = describe_rewards([1.0, 2.0, 0.0], [0.0, 0.0, 1.0], lengths)
    metrics |= {"subsets": {"own": 0.5}, "sections": {"Reasoning": 0.5}}
    table, interval, sections, subsets, _ = build_evaluation_sections({"reward_model": metrics}, {})[
        "labeled_pairs"
    ].elements
    assert [row[0] for row in table.rows] == list(PAIR_METRICS.values())
    assert table.rows[0][1] == 3 and table.rows[1][1] == pytest.approx(2 / 3) and table.rows[2][1] == 1.0
    assert isinstance(interval, Text) and "interval of the accuracy" in interval.text
    assert sections.rows == [["Reasoning", 0.5]] and sections.summary is None
    assert subsets.rows == [["own", 0.5]] and subsets.summary == "Accuracy by subset"


def test_policy_samples_have_the_metrics_that_were_measured():
    metrics = {"outputs": 2, "finished": 0.5, "kl": 0.1, "more": 1}
    (table,) = build_evaluation_sections({"policy": metrics}, {})["policy_samples"].elements
    assert isinstance(table, Table)
    assert table.rows == [[SAMPLE_METRICS[key], metrics[key]] for key in ("outputs", "finished", "kl")]


def test_judged_pairs_are_listed_with_their_results():
    sections = build_evaluation_sections({}, {"other_outputs": Rows(annotate([2, 0, 1.2, None], "a judge of ours"))})
    text, table = sections["judged_other_outputs"].elements
    assert "The preference of a judge of ours" in text.text and isinstance(table, RowTable)
    assert [column.name for column in table.columns] == [
        "prompt",
        "result",
        "preference",
        "other outputs",
        "reference",
    ]
    assert [row[1:3] for row in table.read([0, 1, 3])] == [["win", 1], ["draw", 0.5], ["no preference", None]]
    assert table.read([2]) == [["2?", "loss", pytest.approx(0.2), "own 2", "reference"]]
