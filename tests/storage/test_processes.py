import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

from trl_rlp.storage import processes
from trl_rlp.storage.processes import leave_process_group, process_state


def test_a_single_process_is_the_main_process():
    assert process_state().num_processes == 1
    assert process_state().is_main_process


def test_a_state_with_a_wrong_number_of_processes_is_refused(monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"counts 1 process\(es\), but 2 were started.*PartialState\(cpu=True\)"):
        process_state()


def test_leaving_without_a_process_group_does_nothing():
    leave_process_group()
    assert process_state().num_processes == 1


def test_gloo_releases_its_tensors_before_the_process_group_dies(monkeypatch):
    """A process group that dies earlier waits for Gloo's threads, and they wait for the interpreter."""
    calls = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    state = SimpleNamespace(destroy_process_group=lambda: calls.append("destroy"))
    monkeypatch.setattr(processes, "process_state", lambda: state)
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: calls.append(seconds))
    garbage = torch.nn.Linear(1, 1)
    object.__setattr__(garbage, "itself", garbage)
    is_alive = weakref.ref(garbage)
    gc.disable()
    try:
        del garbage
        leave_process_group()
        assert is_alive() is not None
    finally:
        gc.enable()
    assert calls == [processes.RELEASE_SECONDS, "destroy"]
