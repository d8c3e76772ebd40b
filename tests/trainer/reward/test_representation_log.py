import pytest
import torch
from accelerate import Accelerator

from trl_rlp.trainer.reward.representation_log import MI_PATIENCE, RepresentationLog


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def add_mi(log, value: float, zero: float = 0.0) -> None:
    log.add({"mi": torch.tensor(value), "mi_zero": torch.tensor(zero)})


def warnings(caplog) -> int:
    return sum("zero-information" in record.message for record in caplog.records)


def test_means_are_over_the_micro_batches_that_had_the_term(accelerator):
    """preference_loss: (1 + 3) / 2; mi was there once; two batches were skipped."""
    log = RepresentationLog()
    log.add({"preference_loss": torch.tensor(1.0, requires_grad=True)})
    log.add({"preference_loss": torch.tensor(3.0)})
    log.add({"mi": torch.tensor(-1.0), "mi_zero": torch.tensor(-1.5)})
    log.skip()
    log.skip()
    expected = {"preference_loss": 2.0, "mi": -1.0, "mi_zero": -1.5, "skipped_view_batches": 2.0}
    assert log.means(accelerator) == expected
    assert log.means(accelerator) == {}


def test_a_log_of_skipped_batches_alone_says_so(accelerator):
    log = RepresentationLog()
    log.skip()
    assert log.means(accelerator) == {"skipped_view_batches": 1.0}


def test_the_warning_waits_for_its_patience_and_comes_once(accelerator, caplog):
    log = RepresentationLog()
    for count in range(1, MI_PATIENCE + 3):
        add_mi(log, -1.38, zero=-1.386)
        log.means(accelerator)
        assert warnings(caplog) == (count >= MI_PATIENCE)
    log.warn_if_empty()
    assert warnings(caplog) == 1


def test_one_log_with_information_keeps_it_quiet(accelerator, caplog):
    log = RepresentationLog()
    for value in [0.0, 0.0, 0.5, 0.0, -0.4, 0.0]:
        add_mi(log, value)
        log.means(accelerator)
    log.warn_if_empty()
    assert warnings(caplog) == 0


def test_an_estimate_below_zero_information_is_none_either(accelerator, caplog):
    """NWJ starts at -1/e with scores of 0."""
    log = RepresentationLog()
    for _ in range(MI_PATIENCE):
        add_mi(log, -0.368)
        log.means(accelerator)
    assert warnings(caplog) == 1


def test_a_short_run_is_judged_at_its_end(accelerator, caplog):
    log = RepresentationLog()
    add_mi(log, 0.005)
    log.means(accelerator)
    assert warnings(caplog) == 0
    log.warn_if_empty()
    assert warnings(caplog) == 1


def test_a_run_without_views_has_nothing_to_warn_of(caplog):
    RepresentationLog().warn_if_empty()
    assert warnings(caplog) == 0
