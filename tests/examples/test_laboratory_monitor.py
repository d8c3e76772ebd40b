"""Tests of the monitor in the laboratory: its counts against numbers by hand, and a full run of one seed."""

import json
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "laboratory"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def make_run(malformed: list[float], final: float, kl: float = 0.0) -> dict:
    rows = [{"step": number, "malformed": share, "kl": kl} for number, share in enumerate(malformed)]
    return {"rollouts": rows, "final": {"malformed": final}}


def test_errors_are_counted_by_hand():
    """
    The limit is 0.2, and an alarm needs two rollouts in a row. Collapse is the first rollout above 0.3.

    The healthy runs: one has no alarm, one has an alarm. The collapsed runs: one alarm in rollout 2, before the
    collapse in rollout 3, one in the rollout of the collapse, one after it, and one without. The last run is neither.
    """
    from monitor import count_errors, find_alarm, find_collapse

    runs = [
        make_run([0.1, 0.25, 0.1, 0.25], 0.05),
        make_run([0.1, 0.25, 0.25, 0.1], 0.09),
        make_run([0.1, 0.25, 0.28, 0.4], 0.9),
        make_run([0.1, 0.1, 0.25, 0.4], 0.9),
        make_run([0.1, 0.1, 0.4, 0.4], 0.9),
        make_run([0.1, 0.1, 0.1, 0.4], 0.9),
        make_run([0.4, 0.4, 0.4, 0.4], 0.2),
    ]
    limits = {"malformed": 0.2}
    assert [find_alarm(run["rollouts"], limits) for run in runs[:6]] == [None, 2, 2, 3, 3, None]
    assert [find_collapse(run["rollouts"]) for run in runs[:6]] == [4, 4, 3, 3, 2, 3]
    expected = {"healthy": 2, "collapsed": 4, "false_alarms": 1, "silent": 1, "late": 1}
    assert count_errors(runs, limits) == expected | {"at_alarm": pytest.approx((0.28 + 0.4) / 2)}
    assert count_errors(runs, {"kl": 1.0})["silent"] == 4
    assert count_errors(runs[:1], limits)["at_alarm"] is None


def test_the_interval_of_a_share_by_hand():
    """Without errors in n runs, the upper end u has (1 - u)^n = 2.5 %. For n = 12, u is 1 - .025^(1/12) = 26 %."""
    from monitor import describe_interval

    assert describe_interval(0, 12) == "0% to 26%" and describe_interval(12, 12) == "74% to 100%"
    assert describe_interval(0, 0) == "unknown"


def test_measurements_of_a_rollout_are_joined():
    from monitor import join_measurements

    history = [
        {"step": 1, "malformed": 0.1},
        {"step": 4, "kl": 1.0},
        {"step": 5, "malformed": 0.2},
        {"step": 8, "kl": 2.0},
    ]
    assert join_measurements(history) == [
        {"step": 4, "malformed": 0.1, "kl": 1.0},
        {"step": 8, "malformed": 0.2, "kl": 2.0},
    ]


def test_the_judge_compares_gold_rewards():
    from monitor import build_gold_judge

    judge = build_gold_judge(lambda prompt, text: float(text))
    assert judge(["p"] * 3, ["1", "2", "3"], ["2", "2", "2"]) == [0.0, 0.5, 1.0]


def test_one_seed_runs_to_the_end_and_is_reported(tmp_path, monkeypatch, capsys):
    import monitor
    from monitor import main, run_seed
    from settings import SETTINGS

    monkeypatch.setattr(monitor, "KL_COEFS", (0.1, 0.4))

    def report(*words):
        folder = str(tmp_path)
        monkeypatch.setattr(sys, "argv", ["monitor.py", "report", "--seeds", "0", "--output_dir", folder, *words])
        main()
        return capsys.readouterr().out

    with pytest.raises(SystemExit, match="Run seed 0 with this --output_dir first"):
        report()
    run_seed(tmp_path, 0, SETTINGS["smoke"])
    path = tmp_path / "seed-0" / "monitor.json"
    results, text = json.loads(path.read_text()), path.read_bytes()
    assert set(results) == {"0.1", "0.4"}
    signals = {"kl", "length_ratio", "finished", "malformed", "same_as_anchor", "outliers"}
    for result in results.values():
        assert len(result["rollouts"]) == 2 and signals <= set(result["rollouts"][0])
        assert "judge_win_rate" in result["rollouts"][0] and "judge_win_rate" not in result["rollouts"][1]
    run_seed(tmp_path, 0, SETTINGS["smoke"])
    assert path.read_bytes() == text
    table = report("--limits", "kl=100", "judge_win_rate=0")
    for part in ("2 runs on the seeds 0.", "| `kl` | <= 100 |", "| `judge_win_rate` | >= 0 |", "all of these"):
        assert part in table, part
