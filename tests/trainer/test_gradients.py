import torch
from accelerate import Accelerator
from torch import nn

from trl_rlp.trainer.gradients import average_gradients


class TwoProcesses:
    """Stands for the accelerator of one of two processes. The other process sends `other`."""

    def __init__(self, other: list[float]):
        self.other, self.sent = torch.tensor(other), []

    def reduce(self, tensor, reduction):
        assert reduction == "mean"
        self.sent.append(tensor.tolist())
        return (tensor + self.other) / 2


def build_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))]


def test_the_average_of_two_processes_computed_by_hand():
    """([1 2; 3 4] + [5 6; 7 8]) / 2 = [3 4; 5 6], and ([1 0 -1] + [1 2 3]) / 2 = [1 1 1]. One exchange for all."""
    matrix, vector = parameters = build_parameters()
    matrix.grad, vector.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 0.0, -1.0])
    accelerator = TwoProcesses([5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0])
    average_gradients(iter(parameters), accelerator)
    assert accelerator.sent == [[1.0, 2.0, 3.0, 4.0, 1.0, 0.0, -1.0]]
    assert matrix.grad.tolist() == [[3.0, 4.0], [5.0, 6.0]]
    assert vector.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_process_without_gradients_counts_as_zeros():
    matrix, vector = parameters = build_parameters()
    vector.grad = torch.tensor([2.0, 4.0, 6.0])
    accelerator = TwoProcesses([2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0])
    average_gradients(parameters, accelerator)
    assert accelerator.sent == [[0.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0]]
    assert matrix.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert vector.grad.tolist() == [1.0, 2.0, 3.0]


def test_one_process_keeps_its_gradients():
    matrix, vector = parameters = build_parameters()
    matrix.grad, vector.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(3)
    average_gradients(parameters, Accelerator(cpu=True))
    assert matrix.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]] and vector.grad.tolist() == [1.0] * 3


def test_parameters_of_two_dtypes_keep_theirs():
    wide, narrow = parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    wide.grad, narrow.grad = torch.tensor([1.0]), torch.tensor([2.0, 4.0], dtype=torch.bfloat16)
    average_gradients(parameters, TwoProcesses([3.0, 4.0, 0.0]))
    assert (wide.grad.tolist(), wide.grad.dtype) == ([2.0], torch.float32)
    assert (narrow.grad.tolist(), narrow.grad.dtype) == ([3.0, 2.0], torch.bfloat16)
