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


def test_leaving_collects_no_garbage(monkeypatch):
    """A DDP model that dies there waits for Gloo's threads, and they wait for the interpreter."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes, "process_state", lambda: SimpleNamespace(destroy_process_group=lambda: None))
    monkeypatch.setattr(processes, "RELEASE_SECONDS", 0.0)
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
