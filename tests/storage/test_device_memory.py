import gc
import signal
import weakref

import pytest
import torch

from trl_rlp.storage import device_memory
from trl_rlp.storage.device_memory import GIB, PeakMemory, release_at_end


class Node:
    """An object in a reference cycle, like a trainer."""

    def __init__(self):
        self.itself = self


def test_cycles_are_collected_at_the_end_and_also_after_an_error():
    gc.collect()
    gc.disable()
    try:
        with release_at_end():
            node = weakref.ref(Node())
            assert node() is not None
        assert node() is None

        def fail():
            local = Node()
            found.append(weakref.ref(local))
            raise KeyError

        found = []
        with pytest.raises(KeyError) as caught, release_at_end():
            fail()
        assert caught.tb is not None and found[0]() is None
    finally:
        gc.enable()


def test_the_errors_that_an_error_was_raised_from_are_cleared_too():
    found = []

    def fail():
        local = Node()
        found.append(weakref.ref(local))
        raise KeyError

    def fail_again(cause):
        try:
            fail()
        except KeyError as error:
            raise ValueError from error if cause else None

    for cause in (True, False):
        with pytest.raises(ValueError) as caught, release_at_end():
            fail_again(cause)
        assert caught.value.__context__ is not None
    assert [node() for node in found] == [None, None]


def test_an_error_that_the_caller_is_handling_keeps_its_variables():
    def fail():
        local = "the caller's"
        raise KeyError(local)

    try:
        fail()
    except KeyError as earlier:
        with pytest.raises(ZeroDivisionError) as caught, release_at_end():
            _ = 1 / 0
        assert caught.value.__context__ is earlier
        assert earlier.__traceback__.tb_next.tb_frame.f_locals == {"local": "the caller's"}


def test_the_handler_of_sigterm_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), release_at_end():
        signal.signal(signal.SIGTERM, lambda *arguments: None)
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_peak_is_that_of_the_device_since_the_start(monkeypatch):
    calls = []
    monkeypatch.setattr(device_memory, "_counts_memory", lambda: True)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda: calls.append("reset"), raising=False)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 3 * GIB / 2, raising=False)
    assert PeakMemory().read() == 1.5 and calls == ["reset"]


@pytest.mark.parametrize(("name", "is_counted"), [(None, False), ("mps", False), ("cuda", True)])
def test_the_peak_is_unknown_on_a_cpu_and_on_mps(monkeypatch, name, is_counted):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: name is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(name))
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 0, raising=False)
    assert device_memory._counts_memory() == is_counted
    if not is_counted:
        assert PeakMemory().read() is None


@pytest.mark.gpu
def test_the_memory_of_a_stage_returns_to_the_device():
    torch.accelerator.empty_cache()
    before, peak = torch.accelerator.memory_allocated(), PeakMemory()
    with release_at_end():
        node = Node()
        node.tensor = torch.zeros(2**20, 256, device=torch.accelerator.current_accelerator())  # 1 GiB
        del node
    assert torch.accelerator.memory_allocated() == before and peak.read() >= 1
