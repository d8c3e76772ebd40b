import os

import pytest

import trl_rlp.cli.quickstart as module
from trl_rlp.cli import main
from trl_rlp.quickstart import QuickstartConfig


@pytest.fixture
def configs(monkeypatch):
    """Replaces the run. Returns the configurations that it gets."""
    configs = []
    monkeypatch.setattr(module, "quickstart", configs.append)
    return configs


def test_options_reach_the_run(tmp_path, configs):
    options = ["--output_dir", str(tmp_path), "--method", "uml", "--minutes", "3.5", "--seed", "7"]
    assert main(["quickstart", *options]) == 0
    assert configs == [QuickstartConfig(output_dir=str(tmp_path), method="uml", minutes=3.5, seed=7)]


def test_no_option_is_required(configs):
    assert main(["quickstart"]) == 0
    assert configs == [QuickstartConfig()]


def test_a_wrong_option_is_an_error_before_the_run(configs, capsys):
    assert main(["quickstart", "--minutes", "0"]) == 2
    assert "trl-rlp quickstart: `minutes` must be above 0, got 0.0" in capsys.readouterr().err
    assert not configs


@pytest.mark.parametrize("before, expected", [(None, "passive"), ("active", "active")])
def test_waiting_threads_leave_their_core_unless_the_user_chose(configs, monkeypatch, before, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", "restored at the end of the test")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if before:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    assert main(["quickstart"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == expected
