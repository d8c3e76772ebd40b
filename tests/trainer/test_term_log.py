import pytest
import torch
from accelerate import Accelerator

from trl_rlp.trainer.term_log import TermLog


def test_means_are_over_what_came_since_the_last_call():
    log, accelerator = TermLog(("a", "b")), Accelerator(cpu=True)
    log.add({"a": torch.tensor(1.0)})
    log.add({"a": torch.tensor(4.0), "b": torch.tensor(True)})
    assert log.sums(accelerator) == {"a": (5.0, 2.0), "b": (1.0, 1.0)}
    assert log.means(accelerator) == {}
    log.add({"a": torch.tensor(3.0)})
    assert log.means(accelerator) == {"a": 3.0}


def test_gradients_are_not_kept():
    log = TermLog(("a",))
    value = torch.tensor(2.0, requires_grad=True)
    log.add({"a": value})
    assert not any(v.requires_grad for values in log._values.values() for v in values)
    assert log.means(Accelerator(cpu=True)) == {"a": pytest.approx(2.0)}
