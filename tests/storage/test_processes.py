import pytest
import torch
from accelerate import PartialState

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
