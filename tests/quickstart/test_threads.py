import pytest
import torch

from trl_rlp.quickstart import threads
from trl_rlp.quickstart.threads import find_fastest_threads


def test_the_setting_is_unchanged_and_the_choice_is_one_or_the_largest():
    before = torch.get_num_threads()
    assert find_fastest_threads(2, repeats=1) in (1, 2)
    assert find_fastest_threads(1, repeats=1) == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("slow, fastest", [(1, 2), (2, 1)])
def test_the_choice_follows_the_median_time(monkeypatch, slow, fastest):
    """Work that takes longer with `slow` threads. One quick timing in three does not decide."""
    clock, calls = [0.0], [0]

    def run_layers(*tensors):
        calls[0] += 1
        is_slow = torch.get_num_threads() == slow and calls[0] > 4  # the first round is quick
        clock[0] += 3.0 if is_slow else 1.0

    monkeypatch.setattr(threads, "_run_layers", run_layers)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    assert find_fastest_threads(2, repeats=3) == fastest
