"""A training inside another one leaves the process as it was."""

import random

import numpy as np
import pytest
import torch
from accelerate.state import GradientState
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import set_seed
from transformers.utils import logging

from trl_rlp.trainer.nested_training import keep_run_state, quiet_datasets, quiet_loading


def draw() -> tuple:
    return random.random(), np.random.random(), torch.rand(1).item()


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_and_gradient_state_are_restored(fails):
    set_seed(3)
    expected = draw()
    set_seed(3)
    state = GradientState()
    before = dict(vars(state))
    try:
        with keep_run_state():
            set_seed(7)
            draw()
            state._set_sync_gradients(not state.sync_gradients)
            state.plugin_kwargs = {"num_steps": 9}
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert draw() == expected
    assert vars(state) == before and state.num_steps == before["plugin_kwargs"].get("num_steps", 1)


@pytest.mark.parametrize("are_hidden", [False, True])
def test_the_bars_of_datasets_are_hidden_inside_only(are_hidden):
    (disable_progress_bars if are_hidden else enable_progress_bars)()
    try:
        with quiet_datasets():
            assert are_progress_bars_disabled()
        assert are_progress_bars_disabled() == are_hidden
    finally:
        enable_progress_bars()


@pytest.mark.parametrize("outside, inside", [(logging.INFO, logging.ERROR), (logging.CRITICAL, logging.CRITICAL)])
def test_warnings_of_transformers_are_hidden_inside_only(outside, inside):
    before = logging.get_verbosity()
    logging.set_verbosity(outside)
    try:
        with quiet_loading():
            assert logging.get_verbosity() == inside
        assert logging.get_verbosity() == outside
    finally:
        logging.set_verbosity(before)
