"""
Runs scripts as programs of their own, in processes that have imported the package already.

Its imports take longer than what most of these scripts do. A server process imports them once, and each program is a
fork of it, with its own environment, arguments, output and exit status, as with `subprocess.run`. Two processes get
the variables with which `torchrun` lets them find each other.
"""

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


ROOT = Path(__file__).parents[1]
IMPORTED = ("trl_rlp.pipeline", "trl_rlp.rlp_ppo", "trl_rlp.cli.main", "tests.tiny_models", "pytest")
SECONDS = 1200
SECONDS_AFTER_A_FAILURE = 120
"""How long the other process may still run when one has failed. One may finish alone, or end with its own error."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(IMPORTED))


def run_program(script: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a script in one process."""
    return _run_all(script, words, [{}])[0]


def run_two_processes(script: Path, *words: object) -> list[subprocess.CompletedProcess[str]]:
    """Runs a script on two processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return _run_all(script, words, [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"])


def require_agreement(script: Path, *words: object) -> None:
    """Runs a script on two processes, and requires that each of them ends well and prints that both agree."""
    for result in run_two_processes(script, *words):
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("both processes agree") == 1


def _run_all(
    script: Path, words: tuple[object, ...], environments: list[dict[str, str]]
) -> list[subprocess.CompletedProcess[str]]:
    """Runs a script once for each environment, at the same time. Kills what has not ended in time."""
    arguments = [str(script), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(Path(folder, f"{rank}.out"), Path(folder, f"{rank}.err")) for rank in range(len(environments))]
        programs = [
            SERVER.Process(target=_run, args=(arguments, {**os.environ, "HF_HUB_OFFLINE": "1", **environment}, *files))
            for environment, files in zip(environments, outputs, strict=True)
        ]
        for program in programs:
            program.start()
        end = time.monotonic() + SECONDS
        try:
            while any(program.exitcode is None for program in programs) and time.monotonic() < end:
                if any(program.exitcode for program in programs):
                    end = min(end, time.monotonic() + SECONDS_AFTER_A_FAILURE)
                multiprocessing.connection.wait([program.sentinel for program in programs if program.is_alive()], 0.5)
        finally:
            for program in programs:
                program.kill()
                program.join()
        return [
            subprocess.CompletedProcess(arguments, program.exitcode, *(file.read_text() for file in files))
            for program, files in zip(programs, outputs, strict=True)
        ]


def _run(arguments: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> None:
    """Becomes the program: called in a fork of the server."""
    for number, file in ((1, stdout), (2, stderr)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv[:] = arguments
    sys.path[:0] = [str(Path(arguments[0]).parent), str(ROOT)]
    runpy.run_path(arguments[0], run_name="__main__")
