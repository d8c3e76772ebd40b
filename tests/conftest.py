import gc
import signal

import pytest


def pytest_collection_finish(session):
    """Takes the imported libraries out of garbage collection, which every stage of a run starts."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def sigterm_handler():
    """Restores the handler of SIGTERM. A trainer with `enable_jit_checkpoint` does so only when its training ends."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
