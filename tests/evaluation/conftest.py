import pytest


@pytest.fixture(autouse=True, scope="session")
def evaluate_modules_cache(tmp_path_factory):
    """Sets the folder where `evaluate` copies the script of a metric before its import, once per process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
