import pytest
from datasets import Dataset

from trl_rlp.data.template_options import (
    get_template_options,
    list_template_options,
    require_no_template_columns,
)


TOOL = {"type": "function", "function": {"name": "multiply"}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2 + 2?"}, {}),
        ({"tools": None, "chat_template_kwargs": None}, {}),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"tools": '[{"type": "function", "function": {"name": "multiply"}}]'}, {"tools": [TOOL]}),
        (
            {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}},
            {"tools": [TOOL], "enable_thinking": False},
        ),
    ],
)
def test_the_options_of_a_row_are_those_that_trl_reads(row, expected):
    assert get_template_options(row) == expected


def test_the_options_of_a_dataset_and_of_a_batch_are_listed_by_row():
    rows = {"prompt": ["a", "b"], "chat_template_kwargs": [{"x": 1}, {"x": 2}]}
    assert list_template_options(rows) == list_template_options(Dataset.from_dict(rows)) == [{"x": 1}, {"x": 2}]
    assert list_template_options({"prompt": ["a"]}) is None


def test_prompts_with_template_columns_are_an_error_for_trainers_that_do_not_read_them():
    require_no_template_columns(Dataset.from_dict({"prompt": ["a"]}), "prompt_dataset")
    with pytest.raises(ValueError, match=r"`prompt_dataset` has the columns \['tools'\], which the policy's trainer"):
        require_no_template_columns(Dataset.from_dict({"prompt": ["a"], "tools": ["[]"]}), "prompt_dataset")
