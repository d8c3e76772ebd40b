import pytest

from tests.servers import FakeServer


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.server.shutdown()
    server.server.server_close()
