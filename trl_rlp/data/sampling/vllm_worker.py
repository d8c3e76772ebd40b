"""The process that runs vLLM. The package starts it as a script, so it imports nothing but vLLM."""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any


def main(descriptor: int) -> None:
    """
    Loads a model with vLLM, and samples until there are no more requests.

    The first message is the arguments of `vllm.LLM`. Each further message is a list of prompts (token ids) and a list
    of the arguments of their `vllm.SamplingParams`. The answers are `("ready", None)`, `("samples", token ids)` and
    `("failed", message)`.

    Args:
        descriptor (`int`):
            File descriptor of the connection to the parent process.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection = Connection(descriptor)
    try:
        import vllm

        llm = vllm.LLM(**connection.recv())
        connection.send(("ready", None))
        while (request := connection.recv()) is not None:
            connection.send(("samples", _sample(vllm, llm, *request)))
    except EOFError:
        return
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))


def _sample(vllm: Any, llm: Any, prompts: list[list[int]], params: list[dict[str, Any]]) -> list[list[list[int]]]:
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        [vllm.SamplingParams(**arguments) for arguments in params],
        use_tqdm=False,
    )
    return [[list(choice.token_ids) for choice in output.outputs] for output in outputs]


def _end_with_parent() -> None:
    """Ends this process and those that vLLM started when the parent process has died. Its end closes the pipe."""
    os.read(0, 1)  # not `sys.stdin`, whose lock would be held when the interpreter ends
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
