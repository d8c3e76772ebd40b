import gc
import signal

import pytest
import torch
from transformers.utils import logging


def pytest_collection_finish(session):
    """Takes the imported libraries out of garbage collection, which every stage of a run starts."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def process_settings():
    """
    Restores what scripts and trainers set for the whole process: verbosity of transformers, threads of torch, and the
    handler of SIGTERM, which a trainer with `enable_jit_checkpoint` restores only when its training ends.
    """
    handler, verbosity, threads = signal.getsignal(signal.SIGTERM), logging.get_verbosity(), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.set_verbosity(verbosity)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
