import json
import logging

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.evaluation.gate_report import RewardModelRegression, compare_on_sets, fell_beyond_chance, gate


PAIRS = Dataset.from_dict({"prompt": ["q"] * 4, "chosen": list("abcd"), "rejected": ["xx"] * 4})


@pytest.fixture
def margins(monkeypatch):
    """Replaces scoring with a table from `(model, number of pairs)` to margins."""
    table = {}
    monkeypatch.setattr(
        "trl_rlp.evaluation.gate_report.reward_margins",
        lambda model, tokenizer, pairs, max_length: (table[model, len(pairs)], [-1] * len(pairs)),
    )
    return table


def test_a_better_model_passes_and_the_difference_is_paired(margins):
    """
    Before, 2 of 4 pairs are right, and after, 3 of 4. The difference is 1/4. The standard deviation of (0, 0, 1, 0) is
    1/2, so the standard error is 1/4.
    """
    margins["before", 4], margins["after", 4] = [1.0, 1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0]
    report = gate(("before", None), ("after", None), PAIRS)
    assert report.passed and report.problems == []
    assert report.comparisons["human"]["difference"] == {"accuracy": 0.25, "standard_error": 0.25}
    saved = json.loads(json.dumps(report.as_dict()))
    assert saved == {"passed": True, "problems": [], "comparisons": report.comparisons}


def test_one_pair_has_no_standard_error(margins):
    margins["before", 1], margins["after", 1] = [1.0], [-1.0]
    report = gate(("before", None), ("after", None), PAIRS.select([0]))
    assert report.comparisons["human"]["difference"] == {"accuracy": -1.0, "standard_error": None}
    assert "accuracy fell from 1.000 to 0.000 (1 pair)" in report.problems[0]


def test_a_worse_model_gives_a_warning_or_an_error(margins, caplog):
    margins["before", 4], margins["after", 4] = [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]
    with caplog.at_level(logging.WARNING):
        report = gate(("before", None), ("after", None), PAIRS)
    assert not report.passed and "human pairs: accuracy fell from 0.750 to 0.500" in caplog.text
    with pytest.raises(RewardModelRegression, match="Keep the old one"):
        gate(("before", None), ("after", None), PAIRS, on_regression="raise")
    assert gate(("before", None), ("after", None), PAIRS, accuracy_tolerance=0.25, calibration_tolerance=1.0).passed


def test_policy_pairs_can_fail_but_synthetic_pairs_cannot(margins):
    two, three = PAIRS.select([0, 1]), PAIRS.select([0, 1, 2])
    margins["before", 4] = margins["after", 4] = [1.0, 1.0, 1.0, -1.0]
    margins["before", 2], margins["after", 2] = [1.0, 1.0], [-1.0, -1.0]
    margins["before", 3], margins["after", 3] = [1.0] * 3, [-9.0] * 3
    report = gate(("before", None), ("after", None), PAIRS, synthetic_pairs=three)
    assert report.passed and report.comparisons["synthetic"]["after"]["accuracy"] == 0
    report = gate(("before", None), ("after", None), PAIRS, policy_pairs=two)
    assert not report.passed and report.problems[0].startswith("policy pairs: accuracy fell from 1.000 to 0.000")


def test_overconfidence_is_a_regression(margins):
    margins["before", 4], margins["after", 4] = [0.1, 0.1, -0.1, -0.1], [9.0, 9.0, -9.0, -9.0]
    report = gate(("before", None), ("after", None), PAIRS)
    assert [problem.split(" rose")[0] for problem in report.problems] == ["human pairs: calibration error"]


def test_real_models():
    tokenizer = tiny_tokenizer()
    model = (tiny_reward_model(tokenizer), tokenizer)
    report = gate(model, model, PAIRS)
    assert report.passed and report.comparisons["human"]["difference"]["accuracy"] == 0
    assert report.comparisons["human"]["before"]["length_accuracy"] == 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"on_regression": "ignore"}, "`on_regression` must be one of"),
        ({"accuracy_tolerance": -0.1}, r"`accuracy_tolerance` must be in \[0, 1\], got -0.1"),
        ({"calibration_tolerance": 2}, r"`calibration_tolerance` must be in \[0, 1\], got 2"),
    ],
)
def test_invalid_settings_raise_an_error(settings, match):
    with pytest.raises(ValueError, match=match):
        gate(("before", None), ("after", None), PAIRS, **settings)


@pytest.mark.parametrize(
    "pairs, worse, better, expected",
    [
        (80, 14, 4, True),  # fall .125, z = -10 / sqrt(18) = -2.357
        (80, 15, 5, False),  # fall .125, z = -10 / sqrt(20) = -2.236
        (1000, 110, 10, False),  # fall .1, within the tolerance, z = -100 / sqrt(120) = -9.13
        (1000, 111, 10, True),  # fall .101
        (2, 2, 0, False),  # fall 1, z = -2 / sqrt(2) = -1.41
        (1, 1, 0, False),  # a single pair, z = -1
        (6, 6, 0, True),  # z = -6 / sqrt(6) = -2.45
        (100, 2, 12, False),  # better
        (100, 0, 0, False),
    ],
)
def test_accuracy_fell_beyond_the_tolerance_and_beyond_chance(margins, pairs, worse, better, expected):
    """The first `worse` pairs become wrong, and the last `better` pairs become right. The others stay wrong."""
    dataset = Dataset.from_dict({"prompt": ["q"] * pairs, "chosen": ["a"] * pairs, "rejected": ["b"] * pairs})
    margins["before", pairs] = [1.0] * worse + [-1.0] * (pairs - worse)
    margins["after", pairs] = [-1.0] * (pairs - better) + [1.0] * better
    comparison = compare_on_sets(("before", None), ("after", None), {"human": dataset})["human"]
    assert fell_beyond_chance(comparison) == expected
