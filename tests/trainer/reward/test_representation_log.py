import pytest
import torch
from accelerate import Accelerator

from trl_rlp.trainer.reward.representation_log import MI_PATIENCE, RepresentationLog


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def add_mi(log, value: float, zero: float = 0.0) -> None:
    log.add({"mi": torch.tensor(value), "mi_zero": torch.tensor(zero)})


def count_warnings(caplog) -> int:
    return sum("zero-information" in record.message for record in caplog.records)


def test_means_cover_the_micro_batches_that_have_the_term(accelerator):
    """preference_loss: (1 + 3) / 2. One batch has mi. Two batches are skipped."""
    log = RepresentationLog()
    log.add({"preference_loss": torch.tensor(1.0, requires_grad=True)})
    log.add({"preference_loss": torch.tensor(3.0)})
    log.add({"mi": torch.tensor(-1.0), "mi_zero": torch.tensor(-1.5)})
    log.add_skipped()
    log.add_skipped()
    expected = {"preference_loss": 2.0, "mi": -1.0, "mi_zero": -1.5, "skipped_view_batches": 2.0}
    assert log.means(accelerator) == expected
    assert log.means(accelerator) == {}


def test_skipped_batches_are_logged_without_other_terms(accelerator):
    log = RepresentationLog()
    log.add_skipped()
    assert log.means(accelerator) == {"skipped_view_batches": 1.0}


def test_the_warning_is_logged_once_after_mi_patience_logs(accelerator, caplog):
    log = RepresentationLog()
    for count in range(1, MI_PATIENCE + 3):
        add_mi(log, -1.38, zero=-1.386)
        log.means(accelerator)
        assert count_warnings(caplog) == (count >= MI_PATIENCE)
    log.warn_if_mi_stays_low()
    assert count_warnings(caplog) == 1


def test_one_log_with_information_prevents_the_warning(accelerator, caplog):
    log = RepresentationLog()
    for value in [0.0, 0.0, 0.5, 0.0, -0.4, 0.0]:
        add_mi(log, value)
        log.means(accelerator)
    log.warn_if_mi_stays_low()
    assert count_warnings(caplog) == 0


def test_an_estimate_below_its_zero_information_value_is_no_information(accelerator, caplog):
    """NWJ starts at -1/e, with scores of 0."""
    log = RepresentationLog()
    for _ in range(MI_PATIENCE):
        add_mi(log, -0.368)
        log.means(accelerator)
    assert count_warnings(caplog) == 1


def test_a_short_run_is_checked_at_its_end(accelerator, caplog):
    log = RepresentationLog()
    add_mi(log, 0.005)
    log.means(accelerator)
    assert count_warnings(caplog) == 0
    log.warn_if_mi_stays_low()
    assert count_warnings(caplog) == 1


def test_a_run_without_views_logs_no_warning(caplog):
    RepresentationLog().warn_if_mi_stays_low()
    assert count_warnings(caplog) == 0
