import signal

import pytest


@pytest.fixture(autouse=True)
def sigterm_handler():
    """Restores the handler of SIGTERM. A trainer with `enable_jit_checkpoint` does so only when its training ends."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
