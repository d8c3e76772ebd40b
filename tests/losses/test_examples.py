"""The examples in the docstrings of `trl_rlp.losses` and on its page run and print what they show."""

import doctest
import importlib
import re
from pathlib import Path

import pytest


PAGE = Path(__file__).parents[2] / "docs" / "multi_view_loss.md"


@pytest.mark.parametrize(
    "name", ["mutual_information", "multi_view", "heads", "representation", "kl", "log_probs", "ppo"]
)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"trl_rlp.losses.{name}"))
    assert result.attempted > 0 and result.failed == 0


def test_the_example_on_the_page_runs(capsys):
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names = {}
    exec(example, names)
    assert names["hidden_1"].grad.abs().sum() > 0
    assert "-1.386 if the views share nothing" in capsys.readouterr().out
