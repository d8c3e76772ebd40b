"""A client for OpenAI-compatible servers, with concurrent requests, retries and clear errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from trl_rlp.data.turns import Messages


if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError

T = TypeVar("T")

Choice = tuple[str | None, bool]  # the text (None if a message has no content), and whether it ended with "stop"


@dataclass
class Server:
    """
    The address and the request settings of a server.

    Args:
        base_url (`str`):
            URL of the API, usually ending in `/v1`.
        api_key (`str`, *optional*):
            API key, if the server requires one. Environment variables are not read.
        max_retries (`int`):
            Maximum number of times that the `openai` client repeats a request after a lost connection, a timeout or a
            status of 408, 409, 429 or 5xx. It waits 0.5 to 8 seconds, or as long as the server asks.
        max_concurrency (`int`):
            Maximum number of concurrent requests.
        body (`dict`):
            Fields of every request, including `model`.
        is_reached (`bool`, *optional*, defaults to `False`):
            Whether the server has answered before.
    """

    base_url: str
    api_key: str | None
    max_retries: int
    max_concurrency: int
    body: dict[str, Any]
    is_reached: bool = False

    def work(self, jobs: Sequence[Callable[[Session], Coroutine[Any, Any, T]]]) -> list[T]:
        """
        Runs jobs that send requests to the server, concurrently. Works inside a running event loop (notebooks).

        Args:
            jobs (`Sequence[Callable]`):
                Coroutine functions. Each one is called with a [`Session`].

        Returns:
            `list`: The result of each job, in order.

        Raises:
            ImportError: If `openai` is not installed.
            ConnectionError: If no server answers.
            RuntimeError: If the server still fails after `max_retries`.
            ValueError: If the server refuses a request, or its response is not a completion.
        """
        return _run(self._work(jobs))

    async def _work(self, jobs: Sequence[Callable[[Session], Coroutine[Any, Any, T]]]) -> list[T]:
        async with self._client() as client:
            if not self.is_reached:
                await _require_response(self, client)
                self.is_reached = True
            session = Session(self, client, asyncio.Semaphore(self.max_concurrency))
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(job(session)) for job in jobs]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            return [task.result() for task in tasks]

    def _client(self) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ImportError(
                "Requests to a server need the `openai` package. Install it with `pip install trl-rlp[server]`."
            ) from error
        # Without a key, the client would send OPENAI_API_KEY of the environment to this server, whoever runs it.
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key or "none", max_retries=self.max_retries)


@dataclass
class Session:
    """
    An open connection to a server.

    Args:
        server ([`Server`]):
            Address and request settings.
        client (`openai.AsyncOpenAI`):
            The connection.
        limit (`asyncio.Semaphore`):
            Limits the number of concurrent requests.
    """

    server: Server
    client: AsyncOpenAI
    limit: asyncio.Semaphore

    async def ask(self, prompt: str | Messages, seed: int, n: int = 1) -> list[Choice]:
        """
        Requests completions. Text is sent to `/completions`, messages to `/chat/completions`.

        Args:
            prompt (`str` or `list[dict[str, str]]`):
                Text or messages.
            seed (`int`):
                Seed of the request. The server decides whether it has an effect.
            n (`int`, *optional*, defaults to `1`):
                Number of choices to request.

        Returns:
            `list[tuple[str, bool]]`: The returned choices, each with whether the server gave `"stop"` as its finish
            reason. There is at least one, unless the server refuses to return more than one. Then the list is empty.
            The text is `None` if a message has no content, for example a refusal, or an answer that reached the token
            limit while the model was reasoning.
        """
        from openai import BadRequestError, OpenAIError, UnprocessableEntityError

        is_chat = not isinstance(prompt, str)
        endpoint = self.client.chat.completions if is_chat else self.client.completions
        request = {"messages" if is_chat else "prompt": prompt, "seed": seed, **self.server.body}
        try:
            async with self.limit:
                response = await endpoint.with_raw_response.create(**request, **({"n": n} if n > 1 else {}))
        except OpenAIError as error:
            if n > 1 and isinstance(error, (BadRequestError, UnprocessableEntityError)):
                return []
            raise _explain(error, self.server) from None
        return _parse_choices(response.http_response.text, is_chat, self.server)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end. If an event loop is running already, it runs in a separate thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _require_response(server: Server, client: AsyncOpenAI) -> None:
    """Sends one request without retries, to detect a missing server at once. Any response is accepted."""
    from openai import APIConnectionError, APIStatusError

    try:
        await client.with_options(max_retries=0, timeout=30).models.with_raw_response.list()
    except APIStatusError:
        pass
    except APIConnectionError as error:
        raise _explain(error, server) from None


def _parse_choices(body: str, is_chat: bool, server: Server) -> list[Choice]:
    try:
        choices = json.loads(body)["choices"]
        pairs = [
            (choice["message"]["content"] if is_chat else choice["text"], choice["finish_reason"])
            for choice in choices
        ]
    except (ValueError, KeyError, TypeError):
        pairs = []
    if not pairs or not all(isinstance(text, str) or (text is None and is_chat) for text, _ in pairs):
        raise ValueError(
            f"The response of the server at `base_url`={server.base_url} is not a completion: "
            f"{_shorten(body) or 'an empty body'}. Check that `base_url` belongs to an OpenAI-compatible API. It "
            "usually ends in /v1."
        )
    return [(text and _replace_lone_surrogates(text), reason == "stop") for text, reason in pairs]


def _replace_lone_surrogates(text: str) -> str:
    """Replaces half surrogate pairs, which UTF-8 cannot encode. Servers that cut inside a character send them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _explain(error: OpenAIError, server: Server) -> Exception:
    """Returns an exception whose one-line message says what failed and what to do."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIConnectionError):
        return ConnectionError(
            f"No server answers at `base_url`={server.base_url} ({_shorten(str(error.__cause__ or error))}). Start a "
            "server, for example with `transformers serve` or `vllm serve`, or correct `base_url`."
        )
    status = error.status_code if isinstance(error, APIStatusError) else None
    body = _shorten(error.response.text if isinstance(error, APIStatusError) else str(error))
    if status is None or status in (408, 409, 429) or status >= 500:
        return RuntimeError(
            f"The server at `base_url`={server.base_url} still fails after {server.max_retries} retries (status "
            f"{status}: {body}). Check its log. Samples that were saved in an `output_dir` are kept."
        )
    return ValueError(
        f"The server at `base_url`={server.base_url} refused a request (status {status}: {body}). Check `model`, "
        "`api_key`, `extra_body` and the length of the prompts."
    )


def _shorten(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:200] + "…"
