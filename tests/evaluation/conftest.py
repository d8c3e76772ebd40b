import pytest


@pytest.fixture(autouse=True, scope="session")
def modules_of_evaluate(tmp_path_factory):
    """`evaluate` copies a metric's script there before it imports it, once for a whole process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
