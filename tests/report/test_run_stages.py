from dataclasses import asdict

import pytest

from tests.report.run_folders import (
    SETTINGS,
)
from trl_rlp.quickstart.narration import STAGE_TITLES
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
from trl_rlp.report.run_stages import get_stage_order, list_expected_stages, split_round_name


@pytest.mark.parametrize(
    ("settings", "missing", "extra"),
    [
        ({**SETTINGS, "method": "uml"}, {"groups", "synthetic_preferences"}, set()),
        ({**SETTINGS, "sample_from": "sft"}, {"policy"}, set()),
        ({**SETTINGS, "eval_prompt_dataset": None}, {"evaluation"}, set()),
        ({**SETTINGS, "rounds": 2}, set(), {"policy_samples_2", "gate_2", "retrained_policy_2"}),
        ({"args.rlp_method": "spg", "args.rlp_rounds": 1}, {"retrained_policy", "evaluation"}, set()),
    ],
)
def test_the_expected_stages_are_those_of_the_settings(settings, missing, extra):
    stages, whole = set(list_expected_stages(settings)), set(list_expected_stages(SETTINGS))
    assert whole - stages == missing and extra <= stages
    assert list_expected_stages({"args.rlp_method": "uml"})[-1] == "gate"  # one round by default
    assert list_expected_stages({"seed": 1}) == []


def test_the_quickstart_expects_the_stages_that_it_announces():
    assert list_expected_stages(asdict(QuickstartConfig())) == list(STAGE_TITLES)


def test_stages_are_sorted_by_round_with_the_evaluation_at_the_end():
    names = ["evaluation", "gate_2", "unknown", "gate", "policy_samples_2.partial", "policy"]
    assert sorted(names, key=get_stage_order) == [
        "policy",
        "gate",
        "unknown",
        "policy_samples_2.partial",
        "gate_2",
        "evaluation",
    ]
    assert split_round_name("policy_samples_2.partial") == ("policy_samples", 2)
