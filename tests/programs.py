"""
Runs scripts as programs of their own, in processes that have imported the package already.

Its imports take longer than what most of these scripts do. A server imports them once, and each program is a fork of
it, which ends as an interpreter ends. A program differs from `python script.py` in two things: variables that are read
at import are those of the first program, and all programs have the same order of sets. `run_torchrun` starts new
interpreters.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy


ROOT = Path(__file__).parents[1]
IMPORTED = ("pytest", "trl_rlp.pipeline", "trl_rlp.rlp_ppo", "trl_rlp.cli.main", "tests.tiny_models")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
VARIABLES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SECONDS = 600
SECONDS_AFTER_A_FAILURE = 120
"""How long the other process may still run when one has failed. One may finish alone, or end with its own error."""

Finished = subprocess.CompletedProcess[str]


def find_free_port() -> int:
    """Finds a port of this machine that no program uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_torchrun(script: Path, *words: object, processes: int = 2) -> Finished:
    """Runs a script with `torchrun`."""
    command = [*TORCHRUN, str(processes), str(script), *map(str, words)]
    environment = {**os.environ, **VARIABLES}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def run_program(script: Path, *words: object) -> Finished:
    """Runs a script in one process."""
    return _run_all(script, words, [{}])[0]


def run_two_processes(script: Path, *words: object) -> list[Finished]:
    """Runs a script on two processes, with the variables by which those of `torchrun` find each other."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return _run_all(script, words, [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"])


def require_agreement(script: Path, *words: object) -> None:
    """Runs a script on two processes, and requires that each of them ends well and prints that both agree."""
    results = run_two_processes(script, *words)
    assert [result.returncode for result in results] == [0, 0], "\n".join(result.stderr[-3000:] for result in results)
    assert [result.stdout.count("both processes agree") for result in results] == [1, 1]


def _run_all(script: Path, words: tuple[object, ...], environments: list[dict[str, str]]) -> list[Finished]:
    """Runs a script once for each environment, at the same time."""
    server, arguments = _start_server(), [str(script), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        programs = [
            {
                "arguments": arguments,
                "environment": {**os.environ, **VARIABLES, **environment},
                "outputs": [f"{folder}/{rank}.out", f"{folder}/{rank}.err"],
            }
            for rank, environment in enumerate(environments)
        ]
        print(json.dumps(programs), file=server.stdin, flush=True)
        statuses = json.loads(server.stdout.readline())
        return [
            Finished(arguments, status, *(Path(file).read_text("utf-8") for file in program["outputs"]))
            for status, program in zip(statuses, programs, strict=True)
        ]


@cache
def _start_server() -> subprocess.Popen[str]:
    """Starts the server of this process. It ends with this process, because its input ends."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **VARIABLES},
    )
    assert server.stdout.readline() == "ready\n"
    return server


def _serve() -> None:
    """Answers each line, a list of programs, with their exit statuses when all have ended. Returns in each program."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the imports print is no reply
    sys.path[0] = str(ROOT)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        pids = []
        for program in json.loads(line):
            pids.append(os.fork())
            if pids[-1] == 0:
                return _become(**program)
        print(json.dumps(_wait(pids)), file=replies, flush=True)


def _become(arguments: list[str], environment: dict[str, str], outputs: list[str]) -> None:
    """Runs the program in a fork of the server. The caller returns then, and the interpreter ends."""
    os.setsid()
    for number, file in enumerate([os.devnull, *outputs]):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    numpy.random.seed()
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


def _wait(pids: list[int]) -> list[int]:
    """Waits until all programs have ended, and kills what is left of them and of the programs that they started."""
    statuses: dict[int, int] = {}
    end = time.monotonic() + SECONDS
    try:
        while len(statuses) < len(pids) and time.monotonic() < end:
            for pid in set(pids) - set(statuses):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
            if any(statuses.values()):
                end = min(end, time.monotonic() + SECONDS_AFTER_A_FAILURE)
            time.sleep(0.02)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    return [statuses[pid] if pid in statuses else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    _serve()
