import gc
import signal

import datasets
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
    Restores what examples, commands and trainers set for the whole process: log level, progress bars, threads, and the
    handler of SIGTERM. A trainer with `enable_jit_checkpoint` restores the handler only when its training ends.
    """
    handler, verbosity, threads = signal.getsignal(signal.SIGTERM), logging.get_verbosity(), torch.get_num_threads()
    are_hidden = datasets.are_progress_bars_disabled()
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.set_verbosity(verbosity)
    (datasets.disable_progress_bars if are_hidden else datasets.enable_progress_bars)()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
