"""The examples in the docstrings of `trl_rlp.storage` run and print what they show."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["json_files", "loading", "processes", "run_folder", "shards"])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"trl_rlp.storage.{name}"))
    assert result.attempted > 0 and result.failed == 0
