"""The number of threads that fits the free cores of the machine."""

import statistics
import time

import torch


WIDTH, ROWS, LAYERS = 576, 128, 4
"""
Sizes of the timed work: 128 tokens through four layers as wide as SmolLM2-135M's, as in a small training batch. Fewer
tokens do not show what a second free core is worth.
"""


def find_fastest_threads(most: int, repeats: int = 5) -> int:
    """
    Finds the number of threads that runs a small model fastest: one, or the largest allowed.

    The threads of an operation wait for each other. If another program uses a core, each operation waits until its
    last thread gets a turn. A model runs thousands of short operations, so on a busy machine two threads can be ten
    times slower than one. Large matrix products do not show this.

    Args:
        most (`int`):
            Largest number of threads.
        repeats (`int`, *optional*, defaults to `5`):
            Number of timings for each setting. The timings alternate, and their medians are compared.

    Returns:
        `int`: Number of threads. PyTorch's own setting is unchanged.
    """
    before = torch.get_num_threads()
    states, square, wide = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, 3 * WIDTH)
    timings: dict[int, list[float]] = {1: [], most: []}
    try:
        for _ in range(repeats):
            for threads, times in timings.items():
                torch.set_num_threads(threads)
                _run_layers(states, square, wide)  # the first operations after a change wake the threads
                start = time.perf_counter()
                _run_layers(states, square, wide)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return min(timings, key=lambda threads: statistics.median(timings[threads]))


def _run_layers(states: torch.Tensor, square: torch.Tensor, wide: torch.Tensor) -> None:
    """Runs the operations of a forward pass: products, a normalization and elementwise functions."""
    for _ in range(LAYERS):
        normalized = torch.nn.functional.rms_norm(states, (WIDTH,))
        mixed = torch.softmax(normalized @ square, dim=-1)
        states = states + mixed * (torch.nn.functional.silu(normalized @ wide) @ wide.T)
