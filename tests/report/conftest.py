import shutil

import pytest

from tests.report.run_folders import write_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("contents") / "run")


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")
