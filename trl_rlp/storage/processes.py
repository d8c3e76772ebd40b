"""The processes of a program: which one this is, how they share work, and how they end."""

import functools
import glob
import pickle
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState


RELEASE_SECONDS = 1.0

EXCHANGE_LIMIT = timedelta(days=7)
"""How long processes wait for the results of the others. It is longer than the limit of collectives in training."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def process_state() -> PartialState:
    """
    Returns accelerate's process state. It is also correct on machines without an accelerator.

    On such a machine, a plain `PartialState()` under `torchrun` starts the process group but reports one process, so
    every process would do all the work. An existing state is reused if its number of processes is correct.

    Returns:
        [`~accelerate.PartialState`]: The process state.

    Raises:
        RuntimeError: If the existing state and the process group have different numbers of processes.

    Example:

    ```python
    >>> from trl_rlp.storage.processes import process_state

    >>> process_state().num_processes
    1

    ```
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world_size = torch.distributed.get_world_size()
        if state.num_processes != world_size:
            raise RuntimeError(
                f"accelerate counts {state.num_processes} process(es), but {world_size} were started. On a machine "
                "without an accelerator create `PartialState(cpu=True)`, or a config with `use_cpu=True`, first."
            )
    return state


def share_work(items: Sequence[Item], work: Callable[[list[Item]], Sequence[Result]]) -> list[Result]:
    """
    Shares work among the processes. Every process gets all results, in the order of the items.

    Process `i` of n works on the items i, i + n, i + 2n, ..., so every process must call this function with the same
    items. If the result of an item depends on nothing but this item, the results do not depend on the number of
    processes. So items are whole batches where rounding depends on the batch.

    The processes exchange their results once, when all have finished, over a process group on the CPU that waits for
    up to [`EXCHANGE_LIMIT`]. Results should be small, such as floats. Large results and work of unequal duration
    belong in files, see `trl_rlp.storage.shards`.

    Args:
        items (`Sequence`):
            The items, the same on every process.
        work (`Callable`):
            Called once, with the items of this process. It returns one result for each item, in order. It must not
            call anything that waits for other processes. Results must be picklable.

    Returns:
        `list`: One result for each item.

    Raises:
        Exception: The first exception that `work` raised on any process, on every process.
        RuntimeError: If the processes have different numbers of items.

    Example:

    ```python
    >>> from trl_rlp.storage.processes import share_work

    >>> share_work([1, 2, 3], lambda items: [item**2 for item in items])
    [1, 4, 9]

    ```
    """
    state = process_state()
    if state.num_processes == 1:
        return list(work(list(items)))
    group = _open_exchange(torch.distributed.group.WORLD)
    own = slice(state.process_index, None, state.num_processes)
    try:
        part: Any = list(work(list(items[own])))
    except Exception as error:
        # The other processes wait for the results, so they must get the error before it is raised.
        part = error
    parts: list[Any] = [None] * state.num_processes
    portable = _copy_portable(part) if isinstance(part, Exception) else part
    torch.distributed.all_gather_object(parts, (len(items), portable), group=group)
    _raise_first_error([error for _, error in parts], part)
    if len({size for size, _ in parts}) > 1:
        raise RuntimeError(
            f"The processes share {[size for size, _ in parts]} items. Call the function with the same data on every "
            "process, and check that all of them see the same files."
        )
    results: list[Any] = [None] * len(items)
    for index, (_, other) in enumerate(parts):
        results[index :: state.num_processes] = other
    return results


def run_on_main(work: Callable[[], Result]) -> Result:
    """
    Runs a function on the main process. Every process gets its result.

    Every process must call this function. The others wait, so it is for short work, and for work that only one process
    may do, such as questions to a server.

    Args:
        work (`Callable`):
            The function. It must not call anything that waits for other processes. Its result must be picklable.

    Returns:
        The result of `work`.

    Raises:
        Exception: The exception that `work` raised, on every process.
    """
    return share_work([None], lambda own: [work() for _ in own])[0]


@functools.cache
def _open_exchange(world: "torch.distributed.ProcessGroup") -> "torch.distributed.ProcessGroup":
    """
    Creates the process group that results are exchanged over. Its objects never pass through the memory of a GPU.

    Args:
        world (`torch.distributed.ProcessGroup`):
            The group of all processes. Each one gets one exchange.

    Returns:
        `torch.distributed.ProcessGroup`: The new group.
    """
    return torch.distributed.new_group(backend="gloo", timeout=EXCHANGE_LIMIT)


def _copy_portable(error: Exception) -> Exception:
    """Returns the error if another process can load it, and otherwise a `RuntimeError` with its message."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _raise_first_error(outcomes: list[Any], own: Any) -> None:
    """Raises the error of the first process that has one. A process raises its own error with its traceback."""
    for process, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception):
            if process == process_state().process_index:
                raise own
            outcome.add_note(f"Process {process} raised this error.")
            raise outcome


def list_process_files(path: str | Path) -> list[Path]:
    """
    Returns the files of a cache that several processes write: one for each process, because not every file system lets
    them share a file.

    Args:
        path (`str` or `Path`):
            File of the main process. The files of the others have its name and the number of the process, for example
            `labels.sqlite.1`.

    Returns:
        `list[Path]`: First the file that this process may write, whether it exists or not. Then the existing files of
        other processes, those of earlier programs included.

    Example:

    ```python
    >>> from trl_rlp.storage.processes import list_process_files

    >>> [str(path) for path in list_process_files("no_folder/labels.sqlite")]
    ['no_folder/labels.sqlite']

    ```
    """
    path, index = Path(path), process_state().process_index
    own = path if index == 0 else path.with_name(f"{path.name}.{index}")
    numbered = sorted(path.parent.glob(f"{glob.escape(path.name)}.*"))
    others = [path, *(other for other in numbered if other.suffix[1:].isdecimal())]
    return [own, *(other for other in others if other != own and other.is_file())]


def leave_process_group() -> None:
    """
    Destroys the process group at the end of a program. It does nothing if there is no process group.

    Call it last in a program with several processes. Without it, the program sometimes aborts after all its work is
    done ("terminate called without an active exception"). Gloo's worker threads release the tensors of an operation
    after the operation has returned, and they need the interpreter for that. A thread that is late finds the
    interpreter shut down, and aborts the process. Therefore this function first sleeps for [`RELEASE_SECONDS`].

    It does not collect garbage. If the process group dies before a worker thread is done, the main thread waits for
    the worker thread while it holds the interpreter, and neither ends.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        time.sleep(RELEASE_SECONDS)
        _open_exchange.cache_clear()
        process_state().destroy_process_group()
