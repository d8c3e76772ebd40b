from typing import Any

import pytest

from tests.report.run_folders import compare
from trl_rlp.report.shapes import (
    STAGE_METRICS,
    Evaluation,
    PreferenceRow,
    SampleRow,
    Settings,
    field_shape,
    require_shape,
)


GATE = {"passed": True, "problems": [], "comparisons": {"human": compare(0.6, 0.7)}}
SAMPLE = {"prompt": "a", "completions": ["b"], "finished": [True], "answers": None, "own column": 1}


def nest(levels):
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (GATE, STAGE_METRICS["gate"]),
        ({"sft": {"kl": None, "outputs": 3, "reward/r": 0.5}}, STAGE_METRICS["evaluation"]),
        ({"seed": 1}, Settings),
        (SAMPLE, SampleRow),
        ({"prompt": [{"role": "user", "content": "a"}], "completions": [[{"role": "assistant"}]]}, SampleRow),
        ({"prompt": "a", "chosen": None, "rejected": None, "reason": "all_agree"}, PreferenceRow),
        ({"win_rate": {"interval": None, "length_controlled": None}}, Evaluation),
        (nest(99), Any),
        (float("inf"), float),
    ],
)
def test_a_value_with_its_shape_is_returned_unchanged(value, shape):
    assert require_shape(value, shape) is value


def change_gate(**changes):
    return {"comparisons": {"human": {**compare(0.6, 0.7), "before": {**compare(0.6, 0.7)["before"], **changes}}}}


@pytest.mark.parametrize(
    ("value", "shape", "match"),
    [
        ([], Settings, r"^it is \[\], not a valid dictionary$"),
        ({"rounds": "x"}, Settings, "^`rounds` is 'x', not a valid integer$"),
        ({"rounds": 10**9}, Settings, "`rounds` is 1000000000, not less than or equal to 1000"),
        ({"args.rlp_method": None}, Settings, "`args.rlp_method` is None, not a valid string"),
        ({**GATE, "problems": "x"}, STAGE_METRICS["gate"], "`problems` is 'x', not a valid list"),
        ({"passed": True, "problems": []}, STAGE_METRICS["gate"], "^`comparisons` is missing$"),
        (
            {**GATE, **change_gate(pairs=0)},
            STAGE_METRICS["gate"],
            "`comparisons.human.before.pairs` is 0, not greater",
        ),
        (
            {**GATE, **change_gate(accuracy=-1)},
            STAGE_METRICS["gate"],
            "human.before.accuracy` is -1, not greater than",
        ),
        ({"sft": {"kl": "x"}}, STAGE_METRICS["evaluation"], "`sft.kl` is 'x', not a valid number"),
        ({"accepted": 1.5}, STAGE_METRICS["synthetic_preferences"], "`accepted` is 1.5, not a valid integer"),
        ({**SAMPLE, "completions": "b"}, SampleRow, "`completions` is 'b', not a valid list"),
        ({**SAMPLE, "completions": ["b", 5]}, SampleRow, "`completions.1` is 5, neither text nor messages"),
        ({**SAMPLE, "completions": [[{"role": "a", "tool_calls": 5}]]}, SampleRow, "`tool_calls` are not a list"),
        ({**SAMPLE, "completions": [[{"content": "a"}]]}, SampleRow, "not a list of messages with a `role`"),
        ({**SAMPLE, "completions": [[{"role": "a", "content": 5}]]}, SampleRow, "whose `content` is not text"),
        ({**SAMPLE, "prompt": [{"role": 5}]}, SampleRow, "a message whose `role` is not text"),
        ({**SAMPLE, "answers": 5}, SampleRow, "`answers` is 5, neither text nor a list of texts"),
        ({"win_rate": {"interval": [0.5]}}, Evaluation, r"`win_rate.interval` is \[0.5\]"),
        (nest(101), Any, "it has more than 100 levels of lists and objects"),
        ({"loss": 10**400}, Any, r"a number has an absolute value above 1e\+100"),
    ],
)
def test_another_shape_is_an_error_that_names_the_place(value, shape, match):
    with pytest.raises(ValueError, match=match):
        require_shape(value, shape)


def test_a_field_has_a_shape_of_its_own():
    assert require_shape(None, field_shape(PreferenceRow, "confidence")) is None
    with pytest.raises(ValueError, match="`sample_row` is -1, not greater than or equal to 0"):
        require_shape(-1, field_shape(PreferenceRow, "sample_row"), "sample_row")
    assert field_shape(PreferenceRow, "other") is Any
