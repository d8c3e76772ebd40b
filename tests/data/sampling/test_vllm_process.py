import os
import types
from importlib import import_module

import pytest
import torch

import trl_rlp.data.sampling.vllm_process as vllm_process
from tests.data.sampling.fakes import FakeVLLM
from trl_rlp.data.sampling.vllm_process import VLLMProcess, find_devices, require_vllm


PARAMS = {"n": 2, "seed": 5, "max_tokens": 3, "stop_token_ids": []}


@pytest.fixture
def fake_vllm(monkeypatch, tmp_path):
    yield FakeVLLM(monkeypatch, tmp_path)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_starts_with_the_first_request_and_ends_with_the_block(fake_vllm, monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    with VLLMProcess({"max_model_len": 100}, devices="5") as process:
        assert not fake_vllm.read("pid")
        first = process.sample([[1, 2]], [PARAMS])
        assert process.sample([[1, 2]], [PARAMS]) == first != process.sample([[1, 2]], [{**PARAMS, "seed": 6}])
    (pid,) = set(fake_vllm.read("pid"))
    assert not is_alive(pid)
    assert fake_vllm.read("environment") == [{"RANK": None, "CUDA_VISIBLE_DEVICES": "5"}]
    assert capfd.readouterr().out == ""  # commands write their results there


def test_the_process_is_killed_after_an_error(fake_vllm):
    with pytest.raises(KeyboardInterrupt), VLLMProcess({"max_model_len": 100}) as process:
        process.sample([[1, 2]], [PARAMS])
        raise KeyboardInterrupt
    assert not is_alive(fake_vllm.read("pid")[0])


@pytest.mark.parametrize(
    ("length", "match"),
    [
        (7, "^vLLM failed: ValueError: No available memory for the cache blocks. Its last lines above say more.$"),
        (9, "^The process of vLLM ended with code -9. "),
        (8, "^The process of vLLM ended with code 9. Its last lines .* `gpu_memory_utilization` in `engine_args`"),
    ],
)
def test_failures_of_vllm_are_one_line(fake_vllm, length, match):
    with pytest.raises(RuntimeError, match=match), VLLMProcess({"max_model_len": length}) as process:
        process.sample([[1, 2]], [PARAMS])
    assert not fake_vllm.read("held")


def test_a_missing_vllm_is_an_error(monkeypatch):
    monkeypatch.setattr(vllm_process, "is_vllm_available", lambda: False)
    with pytest.raises(ImportError, match=r"`engine`='vllm' needs vLLM, which is not installed. .*trl-rlp\[vllm\]"):
        require_vllm()


def test_versions_outside_of_the_range_of_trl_are_an_error(fake_vllm, monkeypatch):
    require_vllm()
    monkeypatch.setattr(
        import_module("trl.import_utils"), "_is_package_available", lambda *args, **kwargs: (True, "0.9.1")
    )
    with pytest.raises(ImportError, match="needs another version of vLLM. TRL currently supports .* version 0.9.1"):
        require_vllm()


def state(num_processes, index, device="cuda"):
    return lambda: types.SimpleNamespace(
        num_processes=num_processes, local_process_index=index, device=torch.device(device)
    )


@pytest.mark.parametrize(
    ("visible", "index", "num_devices", "expected"),
    [("2,5,7", 1, 1, "5"), ("2,5,7,9", 1, 2, "7,9"), (None, 3, 1, "3"), ("GPU-a,GPU-b", 0, 1, "GPU-a")],
)
def test_each_process_has_gpus_of_its_own(monkeypatch, visible, index, num_devices, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(vllm_process, "process_state", state(4, index))
    assert find_devices(num_devices) == expected


def test_too_few_gpus_and_other_accelerators_are_errors(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(vllm_process, "process_state", state(2, 1))
    with pytest.raises(
        ValueError, match=r"needs 2 GPU\(s\) for each process .* but process 1 of this machine finds 3"
    ):
        find_devices(2)
    monkeypatch.setattr(vllm_process, "process_state", state(2, 1, "mps"))
    with pytest.raises(ValueError, match="with 2 processes needs CUDA or ROCm, but the device is 'mps'"):
        find_devices(1)
    for plain in (state(1, 0), state(2, 1, "cpu")):
        monkeypatch.setattr(vllm_process, "process_state", plain)
        assert find_devices(1) is None
