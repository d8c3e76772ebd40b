"""The cost model against numbers by hand, and the table in docs/scale.md."""

import importlib
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples/scale"))
    return importlib.import_module("cost")


def test_seconds_equal_numbers_by_hand(cost):
    """
    Forward passes run at 100 * .5 = 50 FLOP/s, NLI at 100 * .2 = 20, training at 100 * .25 = 25, decoding at
    40 * .5 = 20 bytes/s.

    prefill: 2 * 10 * 4 tokens / 50 = 1.6. decode: a step of 5 rows reads 2 * 10 bytes of weights and 5 * 2 * (4 + 3)
    = 70 of the cache in 90 / 20 = 4.5 seconds, and 2 * 6 / 5 = 2.4 steps per prompt are 10.8. nli: 2 * 3 * 2 pairs *
    10 tokens / 20 = 6. score: 2 * 5 * 2 * 10 tokens / 50 = 4. train: 6 * 5 * (2 * .5 + 2) * 10 tokens / 25 = 36.
    """
    device = cost.Device("card", 100, 40, 0.5, 0.2, 0.25, 0.5)
    work = cost.Workload(10, 5, 3, 2, 4, 6, 2, 10, 0.5, 1, 2, 5)
    expected = {"prefill": 1.6, "decode": 10.8, "nli": 6.0, "score": 4.0, "train": 36.0}
    assert cost.compute_stage_seconds(work, device) == pytest.approx(expected)


def test_operations_bound_the_decoding_of_very_large_batches(cost):
    """Without a cache, 1000 rows read 20 bytes in a second at 20 bytes/s, and compute 2 * 10 * 1000 / 50 = 400 s."""
    device = cost.Device("card", 100, 40, 0.5, 0.2, 0.25, 0.5)
    work = cost.Workload(policy=10, num_generations=2, completion_tokens=500, cache_bytes=0, decoding_rows=1000)
    assert cost.compute_stage_seconds(work, device)["decode"] == pytest.approx(400)


def test_more_rows_in_a_batch_share_the_reading_of_the_weights(cost):
    seconds = [
        cost.compute_stage_seconds(cost.Workload(decoding_rows=rows), cost.H100)["decode"] for rows in (16, 64, 256)
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_hours_grow_with_the_number_of_prompts(cost):
    assert cost.compute_gpu_hours(7200, 0.5) == 1.0


def test_the_page_has_the_table(cost, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cost.py"])
    cost.main()
    table = capsys.readouterr().out.strip()
    assert table in (ROOT / "docs/scale.md").read_text(encoding="utf-8")


def test_the_examples_have_one_row_each(cost):
    lines = cost.build_table(cost.H100, (1_000_000,)).splitlines()
    assert len(lines) == 2 + len(cost.EXAMPLES) and len({line.count("|") for line in lines}) == 1
