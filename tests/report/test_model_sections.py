import math
from pathlib import Path

import pandas as pd
import pytest

from tests.report.run_folders import compare
from trl_rlp.evaluation.reward_metrics import standard_error
from trl_rlp.report.elements import Figure, RowTable, Table, Text
from trl_rlp.report.model_sections import (
    build_completion_section,
    build_length_section,
    build_policy_section,
    build_reward_model_section,
    build_sample_section,
    describe_difference,
    format_difference,
    list_logged_rewards,
    list_small_sets,
    name_gate_sets,
)
from trl_rlp.report.rows import Rows, read_parquet
from trl_rlp.report.run_contents import Round, RunContents
from trl_rlp.report.shapes import LoggedRow
from trl_rlp.report.training_log import TrainingLog


def test_differences_within_two_standard_errors_are_marked():
    assert format_difference(0.05, 0.02) == "+0.050 ± 0.020" and format_difference(0.05, None) == "+0.050"
    assert describe_difference(0.05, 0.02) == "+0.050 ± 0.020: better"
    assert describe_difference(-0.05, 0.02) == "-0.050 ± 0.020: worse"
    assert describe_difference(0.03, 0.02).endswith("better, within two standard errors of no difference")
    assert describe_difference(0.0, 0.0).endswith("no difference")
    alike = standard_error([-1, -1]), standard_error([0.2] * 3)  # rounding makes the second 3e-17
    assert [describe_difference(-1.0, alike[0]), describe_difference(0.2, alike[1])] == [
        "-1.000 ± 0.000: all changed alike, so the standard error says nothing",
        "+0.200 ± 0.000: all changed alike, so the standard error says nothing",
    ]
    assert describe_difference(1.0, None) == "+1.000: on a single pair"


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        ({"passed": True, "problems": []}, "The gate passed."),
        ({"passed": False, "problems": ["a", "b"]}, "The gate warned: a; b."),
    ],
)
def test_the_gate_has_accuracy_calibration_and_a_decision(gate, text):
    gate["comparisons"] = {"human": compare(0.6, 0.65)}
    section = build_reward_model_section(name_gate_sets(gate["comparisons"]), gate, "Reward model")
    figure, table, decision = section.elements
    assert len(figure.images) == 2 and figure.shows and figure.limits
    assert table.rows == [["human, held out (decides)", 40, 0.6, 0.65, "+0.050 ± 0.020: better", 0.1, 0.1, 0.5]]
    assert decision.text.startswith(text) and "too few" not in decision.text


def test_a_single_pair_is_too_few_to_decide():
    """Both models are wrong on it, so the gate sees no difference. Pairs that never decide may be few."""
    single = compare(0.0, 0.0)
    single["before"]["pairs"] = single["after"]["pairs"] = 1
    single["difference"] = {"accuracy": 0.0, "standard_error": None}
    gate = {"passed": True, "problems": [], "comparisons": {"human": single, "synthetic": single}}
    _, table, decision = build_reward_model_section(name_gate_sets(gate["comparisons"]), gate, "title").elements
    assert decision.text.startswith(
        "The gate passed. But there are too few pairs to decide: human, held out (1 pair). Accuracy of length"
    )
    assert table.rows[0][4] == "+0.000: on a single pair"
    assert list_small_sets({"human": compare(0.6, 0.65), "policy": single}) == ["policy, by known answers (1 pair)"]


def test_policies_have_a_gold_curve_only_with_known_answers():
    metrics = {
        "sft": {"kl": 0.0, "reward/r": 0.1, "accuracy": 0.5},
        "policy": {"kl": 1.0, "reward/r": 0.3, "accuracy": 0.4},
    }
    figure, table = build_policy_section(metrics).elements
    assert [image.title.split(" against")[0] for image in figure.images] == [
        "proxy: reward of r",
        "gold: accuracy by known answers",
    ]
    assert table.columns == ("metric", "sft", "policy") and ["accuracy", 0.5, 0.4] in table.rows
    for values in metrics.values():
        del values["accuracy"]
    figure, _ = build_policy_section(metrics).elements
    assert "No gold measure was recorded" in figure.limits


def test_without_kl_there_is_a_table_only():
    (table,) = build_policy_section({"sft": {"kl": None, "accuracy": None}}).elements
    assert isinstance(table, Table)


def build_contents(**parts):
    return RunContents(Path("run"), **parts)


def build_policy_rows(text, size=2):
    return Rows([{"prompt": f"p{row}", "completions": [f"{text}{row}"], "finished": [True]} for row in range(size)])


def test_samples_of_every_policy_can_stand_side_by_side():
    policies = {"sft": build_policy_rows("a"), "policy": build_policy_rows("b")}
    section = build_sample_section(build_contents(policies=policies, rewards={"policy": {"r": [[0.5], [1.0]]}}))
    (table,) = (element for element in section.elements if isinstance(element, RowTable))
    assert [(column.name, column.place) for column in table.columns] == [
        ("prompt", "cell"),
        ("sft", "option"),
        ("policy", "option"),
    ]
    assert table.read([1]) == [["p1", [["a1", ""]], [["b1", "r 1.000"]]]]


def test_one_policy_or_different_prompts_cannot_stand_side_by_side():
    assert build_sample_section(build_contents(policies={"sft": build_policy_rows("a")})) is None
    rows = build_policy_rows("b", 2)
    for others in (build_policy_rows("b", 3), Rows(rows.take([1, 0]))):
        policies = {"sft": build_policy_rows("a", 2), "policy": others}
        (text,) = build_sample_section(build_contents(policies=policies)).elements
        assert isinstance(text, Text) and text.is_caution and "different prompts" in text.text


def test_rewards_against_length_come_from_pairs_policies_and_logged_completions():
    """The rewards of the chosen sides grow with the length, and those of the policy fall."""
    pairs = Rows(
        [
            {"chosen": "a" * size, "rejected": "b", "chosen_reward": size / 10, "rejected_reward": None}
            for size in (1, 2, 3)
        ]
    )
    policies = {"policy": Rows([{"prompt": "p", "completions": ["a", "aa", "aaa"]}])}
    completions = Rows(
        [{"step": 1, "prompt": "p", "completion": "a" * size, "r": 1.0, "advantage": 0.5} for size in (1, 2)]
    )
    contents = build_contents(
        rounds=[Round(pairs=pairs)],
        policies=policies,
        rewards={"policy": {"r̂": [[3.0, 2.0, 1.0]]}},
        completions=completions,
    )
    figure, table = build_length_section(contents).elements
    assert isinstance(figure, Figure) and len(figure.images) == 3
    assert [row[:3] for row in table.rows] == [
        ["reward of r on the pairs D̂", "chosen", 3],
        ["r̂ on held-out prompts", "policy", 3],
        ["r, logged in training", "completions", 2],
    ]
    assert [row[3] for row in table.rows] == [pytest.approx(1), pytest.approx(-1), None]
    assert build_length_section(build_contents()) is None


def test_logged_completions_are_listed_with_their_rewards():
    rows = Rows([{"step": 5, "prompt": "p", "completion": "c", "r": 0.5, "advantage": 1.0, "note": "x"}])
    contents = build_contents(completions=rows)
    assert list_logged_rewards(contents) == ["r"]
    assert build_completion_section(contents).elements[1].read([0]) == [[5, "p", "c", 0.5]]
    assert build_completion_section(build_contents()) is None and list_logged_rewards(build_contents()) == []


def read_logged(folder, rewards):
    """Writes completions as TRL does, which logs NaN for a completion that a reward function skipped."""
    table = pd.DataFrame({"step": [1] * 2, "prompt": ["p"] * 2, "completion": ["c"] * 2, **rewards})
    table.to_parquet(folder / "completions_00001.parquet")
    return read_parquet(folder, LoggedRow)


def test_a_reward_function_may_skip_rows_and_other_columns_of_numbers_are_no_rewards(tmp_path):
    """
    `maths` skips the first row or all, `fmt` is new in the second file, and `length` is what `log_extra` logged.
    """
    rows = [
        {"step": "1", "prompt": "p", "completion": "c", "maths": None, "length": 3.0},
        {"step": "x", "prompt": "p", "completion": "cc", "maths": 0.5, "length": 4.0, "fmt": 1.0},
    ]
    entries = [{"step": 1, "rewards/maths/mean": 0.5, "rewards/fmt/mean": 1.0, "rewards/old/mean": 1.0}]
    logs = {"trainer": TrainingLog(Path("trainer_state.json"), entries, {})}
    contents = build_contents(completions=Rows(rows), logs=logs)
    assert list_logged_rewards(contents) == ["fmt", "maths"]
    assert list_logged_rewards(build_contents(completions=Rows(rows))) == ["fmt", "length", "maths"]
    table = build_completion_section(contents).elements[1]
    assert table.read([0, 1]) == [[1, "p", "c", None, None], [None, "p", "cc", 1.0, 0.5]]
    assert [row[:3] for row in build_length_section(contents).elements[1].rows] == [
        ["fmt, logged in training", "completions", 1],
        ["maths, logged in training", "completions", 1],
    ]
    skipped = build_contents(completions=read_logged(tmp_path, {"maths": [math.nan] * 2}), logs=logs)
    assert list_logged_rewards(skipped) == ["maths"] and build_length_section(skipped) is None
    assert build_completion_section(skipped).elements[1].read([0, 1]) == [[1, "p", "c", None], [1, "p", "c", None]]
    wrong = build_contents(completions=Rows([{**rows[0], "maths": "x"}], path=Path("completions")), logs=logs)
    with pytest.raises(ValueError, match="'completions' is damaged .the column `maths` of rewards has other values"):
        list_logged_rewards(wrong)
