"""Policy samples P from an OpenAI-compatible server: vLLM, SGLang, TGI, `transformers serve`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.fingerprints import value_fingerprint
from trl_rlp.data.sampling import Prompt, with_completions
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.shards import Record, cut_shards, work_in_shards
from trl_rlp.data.turns import begins_turn
from trl_rlp.data.validation import require_prompts


if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError

Choice = tuple[str, bool]  # the text, and whether it ended by itself


def sample_from_server(
    prompts: Dataset,
    base_url: str,
    model: str,
    *,
    num_generations: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
    api_key: str | None = None,
    max_concurrency: int = 16,
    max_retries: int = 5,
    extra_body: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    shard_size: int = 64,
) -> Dataset:
    """
    Samples n completions of every prompt from a server: P of Algorithm 1, step 4.

    Text goes to `/completions`, messages to `/chat/completions`. n completions are asked for in one request; from the
    first time that fewer come back, each missing sample is a request of its own. Each request carries a seed of its
    own, but whether a seed decides the samples is up to the server (most do not promise it, least of all with requests
    in parallel). So is what else it does to the distribution: pass `extra_body={"top_k": -1}` to a vLLM that takes
    defaults from the model's `generation_config`. Works inside a running event loop, as in a notebook.

    Args:
        prompts (`datasets.Dataset`):
            Column `prompt`: text, or messages with `role` and `content`. Other columns are kept.
        base_url (`str`):
            Where the server's API begins, usually ending in `/v1`.
        model (`str`):
            The policy's name on the server. If other weights are served under the same name, a continued run does not
            notice.
        num_generations (`int`, *optional*, defaults to `10`):
            n in the paper, at least 2.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits; above 0.
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass to sample from, in (0, 1].
        max_tokens (`int`, *optional*, defaults to `256`):
            Longest completion, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed from which the seed of each request is drawn.
        api_key (`str`, *optional*):
            Key for a server that wants one. None is taken from the environment, and none is written to `output_dir`.
        max_concurrency (`int`, *optional*, defaults to `16`):
            Requests under way at once, from each process.
        max_retries (`int`, *optional*, defaults to `5`):
            How often the `openai` client repeats a request after a lost connection, a timeout or a status of 408, 409,
            429 or 5xx, waiting from half a second to eight seconds or as long as the server says.
        extra_body (`dict`, *optional*):
            Further fields of each request.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards; an interrupted run goes on from there.
        shard_size (`int`, *optional*, defaults to `64`):
            Prompts a shard.

    Returns:
        `datasets.Dataset`: the prompts in their order, with `completions` (n texts) and `finished` (n booleans: the
        server gave `"stop"` as the reason why it ended).

    Raises:
        ImportError: if `openai` is not installed.
        TypeError: if an argument has the wrong type.
        ConnectionError: if no server answers.
        RuntimeError: if the server still fails after `max_retries`.
        ValueError: if a setting is out of range, there is no prompt or an empty one, the server refuses a request or
            answers something that is not a completion, or `output_dir` holds samples of another run.

    Example:

    ```python
    >>> samples = sample_from_server(prompts, "http://localhost:8000/v1", "my-policy", num_generations=10)
    ```
    """
    settings = {
        "num_generations": num_generations,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "shard_size": shard_size,
    }
    require_settings(**settings, max_concurrency=max_concurrency, max_retries=max_retries)
    require_prompts(prompts)
    texts = prompts["prompt"][:]
    _require_open_turns(texts, extra_body)
    body = {"model": model, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    server = _Server(base_url, api_key, max_retries, max_concurrency, {**body, "extra_body": extra_body}, seed)

    def sample_shard(index: int, rows: list[int], advance: Callable[[int], Any]) -> list[Record]:
        return _run(_sample_rows(server, {row: texts[row] for row in rows}, num_generations, advance))

    records = work_in_shards(
        cut_shards(list(range(len(texts))), shard_size),
        sample_shard,
        description="Sampling",
        output_dir=output_dir,
        fingerprint={
            "base_url": base_url.rstrip("/"),
            "model": model,
            "prompts": value_fingerprint(texts),
            "extra_body": extra_body,
            **settings,
        },
    )
    return with_completions(prompts, records)


@dataclass
class _Server:
    """How a server is reached and asked, and what was learnt about it."""

    base_url: str
    api_key: str | None
    max_retries: int
    max_concurrency: int
    body: dict[str, Any]
    seed: int
    is_reached: bool = False
    gives_many: bool = True

    def client(self) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ImportError(
                "Sampling from a server needs the `openai` package. Install it with `pip install trl-rlp[server]`."
            ) from error
        # Without a key the client would send OPENAI_API_KEY of the environment to whatever server this is.
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key or "none", max_retries=self.max_retries)


def _require_open_turns(prompts: list[Prompt], extra_body: dict[str, Any] | None) -> None:
    if "continue_final_message" in (extra_body or {}):
        return
    for row, prompt in enumerate(prompts):
        if begins_turn(prompt):
            raise ValueError(
                f"`prompts` row {row} ends with an assistant message, which many servers do not continue. Drop that "
                "message, or on vLLM and SGLang pass `extra_body={'continue_final_message': True, "
                "'add_generation_prompt': False}`."
            )


def _run(work: Coroutine[Any, Any, list[Record]]) -> list[Record]:
    """Runs a coroutine to its end, in a thread of its own where an event loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _sample_rows(
    server: _Server, prompts: dict[int, Prompt], num_generations: int, advance: Callable[[int], Any]
) -> list[Record]:
    async with server.client() as client:
        if not server.is_reached:
            await _require_server(server, client)
        limit = asyncio.Semaphore(server.max_concurrency)

        async def sample(row: int, prompt: Prompt) -> Record:
            choices = await _sample_prompt(server, client, limit, row, prompt, num_generations)
            advance(1)
            return {"completions": [text for text, _ in choices], "finished": [finished for _, finished in choices]}

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(sample(row, prompt)) for row, prompt in prompts.items()]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]


async def _require_server(server: _Server, client: AsyncOpenAI) -> None:
    """Asks once, without retries, so that a server that is not there is known at once. Any answer will do."""
    from openai import APIConnectionError, APIStatusError

    try:
        await client.with_options(max_retries=0, timeout=30).models.with_raw_response.list()
    except APIStatusError:
        pass
    except APIConnectionError as error:
        raise _explained(error, server) from None
    server.is_reached = True


async def _sample_prompt(
    server: _Server, client: AsyncOpenAI, limit: asyncio.Semaphore, row: int, prompt: Prompt, num_generations: int
) -> list[Choice]:
    choices = []
    if server.gives_many:
        choices = (await _ask(server, client, limit, prompt, num_generations, (row, 0)))[:num_generations]
        server.gives_many = len(choices) == num_generations
    missing = range(len(choices), num_generations)
    answers = await asyncio.gather(*(_ask(server, client, limit, prompt, 1, (row, sample)) for sample in missing))
    return choices + [answer[0] for answer in answers]


async def _ask(
    server: _Server, client: AsyncOpenAI, limit: asyncio.Semaphore, prompt: Prompt, n: int, place: tuple[int, int]
) -> list[Choice]:
    """The choices that the server gives, at least one; none where it refuses to give n."""
    from openai import BadRequestError, OpenAIError, UnprocessableEntityError

    is_chat = not isinstance(prompt, str)
    endpoint = client.chat.completions if is_chat else client.completions
    seed = int(np.random.SeedSequence([server.seed, *place]).generate_state(1)[0]) >> 1  # 31 bits: some read an int32
    request = {"messages" if is_chat else "prompt": prompt, "seed": seed, **server.body} | ({"n": n} if n > 1 else {})
    try:
        async with limit:
            answer = await endpoint.with_raw_response.create(**request)
    except OpenAIError as error:
        if n > 1 and isinstance(error, (BadRequestError, UnprocessableEntityError)):
            return []
        raise _explained(error, server) from None
    return _choices(answer.http_response.text, is_chat, server)


def _choices(text: str, is_chat: bool, server: _Server) -> list[Choice]:
    try:
        choices = json.loads(text)["choices"]
        pairs = [(each["message"]["content"] if is_chat else each["text"], each["finish_reason"]) for each in choices]
    except (ValueError, KeyError, TypeError):
        pairs = []
    if not pairs or not all(isinstance(completion, str) for completion, _ in pairs):
        raise ValueError(
            f"The server at `base_url`={server.base_url} answered something that is not a completion: "
            f"{_one_line(text) or 'an empty body'}. Check that `base_url` is that of an OpenAI-compatible API; it "
            "usually ends in /v1."
        )
    return [(_without_half_characters(completion), reason == "stop") for completion, reason in pairs]


def _without_half_characters(text: str) -> str:
    """The same text; a server that cuts within a character may send half of a surrogate pair, which UTF-8 lacks."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _explained(error: OpenAIError, server: _Server) -> Exception:
    """What went wrong, in one line that says what to do."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIConnectionError):
        return ConnectionError(
            f"No server answers at `base_url`={server.base_url} ({_one_line(str(error.__cause__ or error))}). Start "
            "one, for example with `transformers serve` or `vllm serve`, or correct `base_url`."
        )
    status = error.status_code if isinstance(error, APIStatusError) else None
    answer = _one_line(error.response.text if isinstance(error, APIStatusError) else str(error))
    if status is None or status in (408, 409, 429) or status >= 500:
        return RuntimeError(
            f"The server at `base_url`={server.base_url} still fails after {server.max_retries} retries (status "
            f"{status}: {answer}). Look at its log; with an `output_dir` a second call goes on after the last shard."
        )
    return ValueError(
        f"The server at `base_url`={server.base_url} refused a request (status {status}: {answer}). Check `model`, "
        "`api_key`, `extra_body` and the length of the prompts."
    )


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:200] + "…"
