"""A training inside another training, which must find everything as it left it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.state import GradientState
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging


@contextmanager
def keep_run_state() -> Iterator[None]:
    """
    Restores at the end of a `with` block what a training inside the block changes for the whole process: the random
    states of Python, NumPy and PyTorch, on the CPU and on the accelerator of this process, and accelerate's
    `GradientState`. It does so also when the block fails.
    """
    gradient_state = vars(GradientState())  # shared by all accelerators of the process
    gradients = dict(gradient_state)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    device = torch.get_device_module() if torch.accelerator.is_available() else None
    device_state = None if device is None else device.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if device is not None:
            device.set_rng_state(device_state)
        gradient_state.clear()
        gradient_state.update(gradients)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hides warnings of transformers inside a `with` block. It reports each score head that it creates."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(max(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hides the progress bars of `datasets` inside a `with` block. There are about ten in each training."""
    are_hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not are_hidden:
            enable_progress_bars()
