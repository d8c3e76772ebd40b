import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

from trl_rlp.storage import processes
from trl_rlp.storage.processes import (
    leave_process_group,
    list_process_files,
    process_state,
    run_on_main,
    share_work,
)


def test_a_single_process_is_the_main_process():
    assert process_state().num_processes == 1
    assert process_state().is_main_process


def test_a_state_with_a_wrong_number_of_processes_is_refused(monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"counts 1 process\(es\), but 2 were started.*PartialState\(cpu=True\)"):
        process_state()


# Sharing between two real processes is in tests/trainer/two_process_run.py.


def test_one_process_does_all_the_work_in_one_call():
    calls = []
    assert share_work(range(3), lambda items: calls.append(items) or [item + 1 for item in items]) == [1, 2, 3]
    assert calls == [[0, 1, 2]]
    with pytest.raises(ZeroDivisionError):
        share_work([1], lambda items: 1 / 0)
    assert run_on_main(lambda: "result") == "result"


@pytest.mark.parametrize("index, own", [(0, "labels[1].sqlite"), (2, "labels[1].sqlite.2")])
def test_each_process_has_a_file_and_reads_those_of_all_others(tmp_path, monkeypatch, index, own):
    """Files of more processes than there are now stay readable, and files with other endings are no part of it."""
    monkeypatch.setattr(processes, "process_state", lambda: SimpleNamespace(process_index=index))
    names = ["labels[1].sqlite", *(f"labels[1].sqlite.{number}" for number in (1, 2, 7))]
    for name in (*names, "labels[1].sqlite.1.partial", "labels[1].sqlite-journal", "labels1.sqlite.4"):
        (tmp_path / name).touch()
    files = list_process_files(tmp_path / names[0])
    assert [file.name for file in files] == [own, *(name for name in names if name != own)]


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
