import datasets
import pytest
import torch
import transformers


@pytest.fixture(autouse=True)
def process_settings():
    """Restores what an example sets for its whole process: log level, progress bars and threads."""
    verbosity, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    are_hidden = datasets.are_progress_bars_disabled()
    yield
    transformers.logging.set_verbosity(verbosity)
    (datasets.disable_progress_bars if are_hidden else datasets.enable_progress_bars)()
    torch.set_num_threads(threads)
