import pytest
import torch


@pytest.fixture(autouse=True)
def use_one_thread():
    """The tensors are so small that synchronizing two threads takes longer than the computation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
