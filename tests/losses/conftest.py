import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are far too small for two threads: waiting for each other takes longer than the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
