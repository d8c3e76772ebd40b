"""The number of processes and the rank of this one."""

import time

import torch
from accelerate import PartialState


RELEASE_SECONDS = 1.0


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
        process_state().destroy_process_group()
