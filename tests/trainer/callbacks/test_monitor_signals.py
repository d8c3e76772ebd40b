import math

import pytest

from trl_rlp.trainer.callbacks.monitor_signals import (
    PATIENCE,
    SIGNALS,
    LimitWatch,
    correlate,
    describe_alert,
    read_log,
    resolve_limits,
    spread_evenly,
)


def test_limits_replace_defaults():
    limits = resolve_limits({"kl": 20.0, "outliers": None, "judge_win_rate": 0.4})
    assert limits["kl"] == 20.0 and limits["judge_win_rate"] == 0.4 and limits["malformed"] == 0.2
    assert "outliers" not in limits and "disagreement" not in limits
    assert resolve_limits(None) == {name: signal.limit for name, signal in SIGNALS.items() if signal.limit is not None}
    with pytest.raises(ValueError, match=r"`limits` has the unknown signal 'KL'. The signals are \['disagreement'"):
        resolve_limits({"KL": 1.0})
    with pytest.raises(ValueError, match=r"`limits\['kl'\]` must be a finite number, got nan"):
        resolve_limits({"kl": math.nan})


def test_the_log_of_grpo_is_read():
    """0.1 nats a token and 20 tokens are 2 nats a completion. A quarter was cut off, so three quarters finished."""
    logs = {"kl": 0.1, "completions/mean_length": 20.0, "completions/clipped_ratio": 0.25, "loss": 1.0, "eval_kl": 9.0}
    assert read_log(logs) == {"kl": pytest.approx(2.0), "length": 20.0, "finished": 0.75}
    assert read_log({"kl": 0.1}, length=30.0) == {"kl": pytest.approx(3.0)}  # a step on an earlier rollout
    assert read_log({"kl": 0.1}) == read_log({"train_runtime": 1.0}) == {}


def test_a_metric_that_is_always_nan_crosses_its_limit():
    """GRPO logs None for it."""
    values = read_log({"kl": None, "completions/mean_length": 20.0, "refinement/disagreement": None})
    assert math.isnan(values["kl"]) and math.isnan(values["disagreement"]) and values["length"] == 20.0
    watch = LimitWatch({"kl": 3.0})
    assert [watch.update({"kl": values["kl"]}) for _ in range(2)] == [[], ["kl"]]


def test_the_log_of_ppo_and_of_other_objects_is_read():
    logs = {"objective/kl": 4.0, "kl": 1.0, "completions/mean_length": 20.0}
    assert read_log(logs) == {"kl": 4.0, "length": 20.0}
    logs = {"semantic_anchor/same_share": 0.5, "refinement/disagreement": 0.25}
    assert read_log(logs) == {"same_as_anchor": 0.5, "disagreement": 0.25}


def test_correlation_by_hand():
    """
    Rewards 1, 2, 3 and lengths 2, 2, 5: the differences from the means are -1, 0, 1 and -1, -1, 2. The products sum to
    3, the squares to 2 and 6, so the correlation is 3 / √12.
    """
    assert correlate([1, 2, 3], [2, 2, 5]) == pytest.approx(3 / math.sqrt(12))
    assert correlate([1, 2, math.inf, 3], [2, 2, 100, 5]) == pytest.approx(3 / math.sqrt(12))
    assert correlate([3, 2, 1], [1, 2, 3]) == pytest.approx(-1)
    assert correlate([1, 1], [2, 3]) is correlate([1, 2], [3, 3]) is correlate([1], [2]) is correlate([], []) is None


def test_rows_are_spread_evenly():
    assert spread_evenly(10, 4) == [0, 2, 5, 7]
    assert spread_evenly(3, 4) == [0, 1, 2]


def test_an_alert_needs_two_measurements_in_a_row():
    """`kl` has the upper limit 3, `finished` the lower limit 0.8. A value at its limit is inside."""
    assert PATIENCE == 2
    watch = LimitWatch({"kl": 3.0, "finished": 0.8})
    steps = [
        ({"kl": 3.0, "finished": 0.8}, []),
        ({"kl": 3.1, "finished": 0.7}, []),
        ({"kl": 2.0, "finished": 0.7}, ["finished"]),
        ({"kl": 4.0}, []),
        ({"kl": 4.0, "finished": 0.6}, ["kl"]),  # `finished` was not measured in between, and has its alert already
        ({"kl": 9.0, "finished": 0.9, "malformed": 1.0}, []),
        ({"finished": math.nan}, []),
        ({"finished": math.nan}, ["finished"]),
    ]
    for values, alerts in steps:
        assert watch.update(values) == alerts, values
    assert watch.crossings == {"kl": 3, "finished": 2}


def test_an_alert_is_one_line_with_value_limit_and_advice():
    text = describe_alert("finished", 0.5, 0.8, 12)
    assert text.startswith(
        "The signal `finished` is 0.5 at step 12, below its limit of 0.8 for 2 measurements in a row."
    )
    assert "Raise the maximum length" in text and "\n" not in text
    assert "is 0.3 at step 1, above its limit of 0.05" in describe_alert("outliers", 0.3, 0.05, 1)
