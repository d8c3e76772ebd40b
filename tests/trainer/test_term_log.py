import torch
from accelerate import Accelerator

from trl_rlp.trainer.term_log import TermLog


def test_sums_cover_all_values_since_the_last_call():
    log, accelerator = TermLog(("a", "b", "c")), Accelerator(cpu=True)
    log.add({"a": torch.tensor(1.0)})
    log.add({"a": torch.tensor(4.0), "b": torch.tensor(True)})
    assert log.sums(accelerator) == {"a": (5.0, 2.0), "b": (1.0, 1.0), "c": (0.0, 0.0)}
    assert log.sums(accelerator) == {"a": (0.0, 0.0), "b": (0.0, 0.0), "c": (0.0, 0.0)}
    log.add({"a": torch.tensor(3.0)})
    assert log.sums(accelerator)["a"] == (3.0, 1.0)


def test_one_collective_reduces_all_names():
    class CountingAccelerator(Accelerator):
        calls = 0

        def reduce(self, *args, **kwargs):
            self.calls += 1
            return super().reduce(*args, **kwargs)

    log, accelerator = TermLog(("a", "b")), CountingAccelerator(cpu=True)
    log.add({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    log.sums(accelerator)
    assert accelerator.calls == 1


def test_gradients_are_not_kept():
    log = TermLog(("a",))
    value = torch.tensor(2.0, requires_grad=True)
    log.add({"a": value})
    assert not any(v.requires_grad for values in log._values.values() for v in values)
    assert log.sums(Accelerator(cpu=True)) == {"a": (2.0, 1.0)}
