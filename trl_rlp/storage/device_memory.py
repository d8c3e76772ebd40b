"""The memory of the device: releases what a stage leaves behind, and measures the peak of a stage."""

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import release_memory


GIB = 2**30
"""Bytes of one GiB."""


class PeakMemory:
    """
    Measures the peak memory of tensors on the device of this process, from its creation on.

    Only one measurement can run at a time, because PyTorch keeps one peak for the whole process.
    """

    def __init__(self):
        self._is_measured = _counts_memory()
        if self._is_measured:
            torch.accelerator.reset_peak_memory_stats()

    def read(self) -> float | None:
        """
        Returns the peak so far.

        Returns:
            `float` or `None`: Peak of the allocated memory, in GiB. `None` on a CPU, and on an accelerator whose peak
            PyTorch does not count.
        """
        return (torch.accelerator.max_memory_allocated() / GIB or None) if self._is_measured else None


def _counts_memory() -> bool:
    """Checks whether PyTorch counts the peak. It does not on MPS, and not before PyTorch 2.9."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type != "mps" and hasattr(torch.accelerator, "max_memory_allocated")


@contextmanager
def release_at_end() -> Iterator[None]:
    """
    Releases the memory that a `with` block leaves behind, also when it fails, and empties the device's cache.

    A trainer, its model and its optimizer refer to each other, so they live on until Python collects garbage. Python
    does that when there are many new objects, not when the device is full. After an error, the frames of the traceback
    keep the local variables of the functions that failed. These variables are cleared, so a debugger that starts later
    does not show them. The handler of SIGTERM that `enable_jit_checkpoint` sets also refers to the trainer. The
    earlier handler is restored, as transformers does it at the end of a training that does not fail.
    """
    handler, earlier = signal.getsignal(signal.SIGTERM), sys.exception()
    try:
        yield
    except BaseException as error:
        _clear_frames(error, earlier)
        raise
    finally:
        if signal.getsignal(signal.SIGTERM) is not handler:
            signal.signal(signal.SIGTERM, handler)
        release_memory()


def _clear_frames(error: BaseException, earlier: BaseException | None) -> None:
    """
    Clears the local variables in the traceback of an error, and of the errors that it was raised from. An earlier
    error that the caller is handling keeps its variables, because they are the caller's.
    """
    waiting: list[BaseException | None] = [error]
    seen = {id(earlier)}
    while waiting:
        current = waiting.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            waiting += [current.__cause__, current.__context__]
