"""vLLM in a process of its own. When this process ends, its GPU memory is free."""

import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import release_memory
from trl.import_utils import is_vllm_available

from trl_rlp.data.sampling import vllm_worker
from trl_rlp.storage.processes import process_state


LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "OMPI_", "PMI_")
LAUNCHER_NAMES = (
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "WORLD_SIZE",
)
"""Environment variables of a launcher. vLLM would take the processes of the launcher for its own."""

END_SECONDS = 60
"""How long vLLM may take to end by itself."""

POLL_SECONDS = 0.5
"""Time between two looks at whether vLLM is still running."""


def require_vllm() -> None:
    """
    Checks that vLLM is installed, in a version that TRL supports.

    Raises:
        ImportError: If it is not.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_installed = is_vllm_available()
    if not is_installed:
        raise ImportError(
            "`engine`='vllm' needs vLLM, which is not installed. Install it with `pip install 'trl-rlp[vllm]'`, or "
            "choose another `engine`."
        )
    problems = [str(warning.message) for warning in caught if "vLLM version" in str(warning.message)]
    if problems:
        raise ImportError(f"`engine`='vllm' needs another version of vLLM. {problems[0]}")


def find_devices(num_devices: int) -> str | None:
    """
    Returns the GPUs of this process for vLLM. Each process of `accelerate launch` has its own.

    Args:
        num_devices (`int`):
            Number of GPUs of each process (`tensor_parallel_size`).

    Returns:
        `str` or `None`: Value of `CUDA_VISIBLE_DEVICES`. `None` leaves it as it is.

    Raises:
        ValueError: If there are not enough GPUs for all processes, or the accelerators are no GPUs.
    """
    state = process_state()
    if state.num_processes == 1 or state.device.type == "cpu":
        return None
    if state.device.type != "cuda":
        raise ValueError(
            f"`engine`='vllm' with {state.num_processes} processes needs CUDA or ROCm, but the device is "
            f"'{state.device.type}'. Start one process, or choose another `engine`."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",")
    start = state.local_process_index * num_devices
    own = devices[start : start + num_devices]
    if len(own) < num_devices:
        raise ValueError(
            f"`engine`='vllm' needs {num_devices} GPU(s) for each process (`tensor_parallel_size`), but process "
            f"{state.local_process_index} of this machine finds {len(devices)} in all. Start fewer processes."
        )
    return ",".join(own)


class VLLMProcess:
    """
    vLLM in a process of its own, which is started by the first request and ended by `close`.

    Args:
        arguments (`dict`):
            Arguments of `vllm.LLM`.
        devices (`str`, *optional*):
            GPUs of the process, see [`find_devices`].
    """

    def __init__(self, arguments: dict[str, Any], devices: str | None = None):
        self._arguments = arguments
        self._devices = devices
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "VLLMProcess":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close(is_regular=exception[0] is None)

    def sample(self, prompts: list[list[int]], params: list[dict[str, Any]]) -> list[list[list[int]]]:
        """
        Samples completions.

        Args:
            prompts (`list[list[int]]`):
                Token ids of each prompt.
            params (`list[dict]`):
                Arguments of `vllm.SamplingParams` of each prompt.

        Returns:
            `list[list[list[int]]]`: Token ids of the samples of each prompt, with the stop token.

        Raises:
            RuntimeError: If vLLM fails, or its process ends.
        """
        if self._process is None:
            self._start()
        return self._ask((prompts, params))

    def close(self, is_regular: bool = True) -> None:
        """
        Ends the process, and with it everything that vLLM has started.

        Args:
            is_regular (`bool`, *optional*, defaults to `True`):
                Whether vLLM may end by itself. Otherwise it is killed at once.
        """
        if self._process is None:
            return
        try:
            if is_regular:
                self._connection.send(None)
                self._process.wait(END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            self._kill()

    def _start(self) -> None:
        release_memory()  # PyTorch's own cache in this process would keep memory from vLLM
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            # -P: the folder of the script is not searched for modules
            [sys.executable, "-P", str(Path(vllm_worker.__file__)), str(theirs.fileno())],
            env=self._build_environment(),
            stdin=subprocess.PIPE,  # closed when this process ends, in whichever way
            stdout=sys.__stderr__,  # results of commands go to the standard output
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # an interrupt comes to this process, which then ends the other one
        )
        theirs.close()
        self._ask(self._arguments)

    def _build_environment(self) -> dict[str, str]:
        own = {
            name: value
            for name, value in os.environ.items()
            if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
        }
        devices = {} if self._devices is None else {"CUDA_VISIBLE_DEVICES": self._devices}
        return {"VLLM_LOGGING_LEVEL": "WARNING", **own, **devices}

    def _ask(self, message: Any) -> Any:
        try:
            self._connection.send(message)
            # vLLM forks processes, which keep the connection open when their parent is killed.
            while not self._connection.poll(POLL_SECONDS):
                if self._process.poll() is not None and not self._connection.poll():
                    raise EOFError
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            raise RuntimeError(
                f"The process of vLLM ended with code {self._process.returncode}. Its last lines above say why. If "
                "its memory was full, lower `gpu_memory_utilization` in `engine_args`. Finished shards are kept in "
                "`output_dir`."
            ) from None
        if kind == "failed":
            raise RuntimeError(f"vLLM failed: {' '.join(value.split())[:400]} Its last lines above say more.")
        return value

    def _kill(self) -> None:
        """Kills the whole group, because vLLM starts processes of its own."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._process.stdin.close()
        self._connection.close()
        self._process = None
