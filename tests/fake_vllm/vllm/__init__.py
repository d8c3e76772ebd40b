"""
A stand-in for vLLM in tests. It draws tokens from the seed alone, and writes what it was called with to a file.

Its tokens are 0 to 259. `max_model_len` 7 fails at the start, and 8 kills the process at the first request. With 9, a
process that it has started keeps the connection open, and would write `held` after a minute.
"""

import json
import os
import random
import signal
import subprocess
import sys
import types


__version__ = "0.30.0"


def _log(**entries):
    if path := os.environ.get("FAKE_VLLM_LOG"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"pid": os.getpid(), **entries}) + "\n")


class SamplingParams:
    def __init__(self, **arguments):
        self.arguments = arguments


class LLM:
    def __init__(self, **arguments):
        _log(llm=arguments, environment={name: os.environ.get(name) for name in ("RANK", "CUDA_VISIBLE_DEVICES")})
        self.max_model_len = arguments["max_model_len"]
        if self.max_model_len == 7:
            raise ValueError("No available memory\nfor the cache blocks.")

    def generate(self, prompts, params, use_tqdm):
        _log(prompts=prompts, params=[entry.arguments for entry in params])
        sys.stdout.write("vLLM writes to the standard output")
        if self.max_model_len == 8:
            os._exit(9)
        if self.max_model_len == 9:
            command = "sleep 60; echo '{\"held\": true}' >> $FAKE_VLLM_LOG"
            subprocess.Popen(["sh", "-c", command], close_fds=False)
            os.kill(os.getpid(), signal.SIGKILL)
        outputs = []
        for entry in params:
            choices = [self._draw(entry.arguments, index) for index in range(entry.arguments["n"])]
            outputs.append(types.SimpleNamespace(outputs=choices))
        return outputs

    def _draw(self, arguments, index):
        generator, tokens = random.Random(arguments["seed"] + index), []
        while len(tokens) < arguments["max_tokens"]:
            tokens.append(generator.randrange(260))
            if tokens[-1] in arguments["stop_token_ids"]:
                break
        return types.SimpleNamespace(token_ids=tuple(tokens))
