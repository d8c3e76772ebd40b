"""Which of how many processes this is."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """
    Gives accelerate's process state, right on machines without an accelerator too.

    There a plain `PartialState()` under `torchrun` starts the process group and then reports one process, so that
    every process does all of the work. A state that exists already is taken as it is, if it counts right.

    Returns:
        [`~accelerate.PartialState`].

    Raises:
        RuntimeError: if the existing state counts other processes than the process group has.

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
    Ends the process group at the end of a program that ran in several processes; otherwise does nothing.

    A program that ends without it now and then aborts, after all its work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        process_state().destroy_process_group()
