"""The protocol of the process that runs vLLM, with a stand-in for vLLM. `test_engines.py` runs the real one."""

import os
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

from tests.data.sampling.fakes import FAKE_VLLM
from trl_rlp.data.sampling import vllm_worker


PARAMS = {"n": 2, "seed": 5, "max_tokens": 3, "stop_token_ids": []}


def start():
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(vllm_worker.__file__)), str(theirs.fileno())],
        env={**os.environ, "PYTHONPATH": str(FAKE_VLLM)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    return process, ours


def test_the_worker_answers_requests_and_ends_when_it_is_told():
    process, connection = start()
    connection.send({"max_model_len": 100})
    assert connection.recv() == ("ready", None)
    connection.send(([[1, 2], [3]], [PARAMS, {**PARAMS, "seed": 9}]))
    kind, samples = connection.recv()
    assert kind == "samples" and [len(row) for row in samples] == [2, 2] and samples[0] != samples[1]
    connection.send(None)
    assert process.wait(30) == 0
    process.stdin.close()


def test_an_error_of_vllm_is_sent():
    process, connection = start()
    connection.send({"max_model_len": 7})
    assert connection.recv() == ("failed", "ValueError: No available memory\nfor the cache blocks.")
    assert process.wait(30) == 0
    process.stdin.close()


def test_the_worker_ends_with_its_parent_also_during_a_request():
    process, connection = start()
    connection.send({"max_model_len": 100})
    connection.recv()
    process.stdin.close()  # as when the parent is killed, while somebody else holds the connection
    assert process.wait(30) == -9
