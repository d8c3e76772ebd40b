"""The device of the tests. Tests marked `gpu` run on CUDA. The same tests run on the CPU in the default suite."""

import os

import pytest
import torch


os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # equal results from run to run, read when CUDA starts

HAS_CUDA = torch.cuda.is_available()
ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="PyTorch finds no CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_CUDA)])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def training(device) -> dict:
    """Settings of a trainer that trains on the device in bf16."""
    return {"use_cpu": device.type == "cpu", "bf16": True}


@pytest.fixture
def deterministic():
    """Makes each operation on the GPU give the same result in each run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
