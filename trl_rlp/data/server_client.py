"""A client for OpenAI-compatible servers, with concurrent requests, retries and clear errors."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from transformers.utils import logging

from trl_rlp.data.server_answers import Choice, read_choices, read_error
from trl_rlp.data.turns import Messages


if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.get_logger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT = 30.0
"""Maximum time to connect, in seconds."""

LONGEST_WAIT = 120.0
"""Maximum wait before the next try that a server may ask for, in seconds. If it asks for more, the request fails."""


class RefusedRequest(ValueError):
    """
    A server refused one request because of its contents, for example a prompt that is longer than the model's context.

    The status is 400, 413 or 422. Other requests may succeed. Errors that concern every request have other types:
    `ConnectionError` (no answer), `TimeoutError` (too slow), `RuntimeError` (still fails after the retries) and
    `ValueError` (wrong API key, model or address).
    """


def require_openai() -> None:
    """
    Checks that the client of servers is installed, before any work.

    Raises:
        ImportError: If `openai` is not installed.
    """
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Requests to a server need the `openai` package. Install it with `pip install 'trl-rlp[server]'`."
        ) from error


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
            Maximum number of times that a request is repeated after a lost connection, a timeout, a status of 408,
            409, 429 or 5xx (except 501), or a response that is not a completion. The wait is 0.5 to 8 seconds, or as
            long as the server asks.
        max_concurrency (`int`):
            Maximum number of concurrent requests.
        body (`dict`):
            Fields of every request, including `model`. Those of its entry `extra_body` come last and replace others. A
            field with the value `None` is not sent.
        timeout (`float`, *optional*, defaults to `600.0`):
            Maximum duration of a request, in seconds.
        is_reached (`bool`, *optional*, defaults to `False`):
            Whether the server has answered before.
        named_reasons (`set`, *optional*):
            Unknown finish reasons that were logged.

    Raises:
        ImportError: If `openai` is not installed.
        ValueError: If the API key cannot be sent.
    """

    base_url: str
    api_key: str | None = field(repr=False)
    max_retries: int
    max_concurrency: int
    body: dict[str, Any]
    timeout: float = 600.0
    is_reached: bool = False
    named_reasons: set[Any] = field(default_factory=set)

    def __post_init__(self):
        require_openai()
        # Keys that are read from files end with a line break, which no header can hold.
        self.api_key = self.api_key and self.api_key.strip()
        if self.api_key and not re.fullmatch("[ -~]+", self.api_key):
            raise ValueError(
                "`api_key` holds a line break or a character that is not ASCII, which no header can hold. Pass the "
                "key only, as the provider shows it."
            )

    @property
    def address(self) -> str:
        """The base URL without a user name and password, for messages and files."""
        return re.sub(r"(?<=://)[^/]*@", "", self.base_url)

    def work(self, jobs: Sequence[Callable[[Session], Coroutine[Any, Any, T]]]) -> list[T]:
        """
        Runs jobs that send requests to the server, concurrently. Works inside a running event loop (notebooks).

        The first job that fails stops the others, and so does an interrupt (Ctrl-C).

        Args:
            jobs (`Sequence[Callable]`):
                Coroutine functions. Each one is called with a [`Session`].

        Returns:
            `list`: The result of each job, in order.

        Raises:
            ConnectionError: If no server answers.
            TimeoutError: If a request takes longer than `timeout`, also after `max_retries`.
            RuntimeError: If the server still fails after `max_retries`.
            RefusedRequest: If the server refuses one request because of its contents.
            ValueError: If the server refuses the API key, the model or the address.
        """
        with RequestPool(self) as pool:
            return pool.work(jobs)

    def connect(self) -> AsyncOpenAI:
        """
        Creates the client of the server. It sends nothing.

        Returns:
            `openai.AsyncOpenAI`: The client.
        """
        from openai import AsyncOpenAI, Timeout

        class Client(AsyncOpenAI):
            # The parent class adds OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS of the environment, and
            # would send them to this server, whoever runs it.
            @property
            def default_headers(self) -> dict[str, Any]:
                return {
                    "Accept": "application/json",
                    "Content-Type": "application/json",
                    "User-Agent": "trl-rlp",
                    **self.auth_headers,
                }

        # Without a key, the client would also send OPENAI_API_KEY of the environment.
        return Client(
            base_url=self.base_url,
            api_key=self.api_key or "none",
            max_retries=0,
            timeout=Timeout(None, connect=CONNECT_TIMEOUT),
        )


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
            `list[Choice]`: The returned choices, at least one. Some servers return one choice whatever `n` is, and
            some refuse such a request.
        """
        fields = self._build_fields(seed, n)
        async with self.limit:
            for retries in range(self.server.max_retries + 1):
                answer = await self._request(prompt, fields, retries)
                if not isinstance(answer, _Failure):
                    return answer
                if not answer.is_passing or retries == self.server.max_retries:
                    break
                logger.info(f"{answer.error} It is asked again.")
                backoff = min(0.5 * 2**retries, 8.0) * random.uniform(0.75, 1.0)
                await asyncio.sleep(answer.wait or backoff)
        raise answer.error

    def _build_fields(self, seed: int, n: int) -> dict[str, Any]:
        fields = {"seed": seed, **({"n": n} if n > 1 else {}), **self.server.body}
        fields |= fields.pop("extra_body", None) or {}
        return {name: value for name, value in fields.items() if value is not None}

    async def _request(self, prompt: str | Messages, fields: dict[str, Any], retries: int) -> list[Choice] | _Failure:
        """Sends a request once. The number of earlier tries is for the error message."""
        from openai import APIConnectionError, APIStatusError

        is_chat = not isinstance(prompt, str)
        endpoint = self.client.chat.completions if is_chat else self.client.completions
        request = {"model": fields["model"], "messages" if is_chat else "prompt": prompt, "extra_body": fields}
        try:
            async with asyncio.timeout(self.server.timeout):
                response = await endpoint.with_raw_response.create(**request)
        except TimeoutError:
            return _Failure(_explain_timeout(self.server, retries))
        except APIConnectionError as error:
            return _Failure(_explain_lost_connection(self.server, error, retries))
        except APIStatusError as error:
            return _explain_status(
                self.server, error.status_code, error.response.text, error.response.headers, retries
            )
        body = response.http_response.text
        choices = read_choices(body, is_chat, self.server.named_reasons)
        # Some gateways answer with status 200, and report the failure of the server behind them in the body.
        return choices or _explain_status(
            self.server, read_error(body) or 200, body, response.http_response.headers, retries
        )


@dataclass
class _Failure:
    """Why a request failed, whether another try may succeed, and the wait in seconds that the server asks for."""

    error: Exception
    is_passing: bool = True
    wait: float | None = None


async def gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """
    Runs coroutines concurrently. The first one that fails stops the others, and its error is raised.

    Args:
        work (`Iterable[Coroutine]`):
            The coroutines.

    Returns:
        `list`: Their results, in order.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in work]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


class RequestPool:
    """
    A pool of at most `max_concurrency` requests to a server, which several threads share.

    It works inside a running event loop (notebooks), because its requests run in a loop in a thread of its own. They
    all end with the `with` block.

    Args:
        server ([`Server`]):
            Address and request settings. It is asked for nothing before the first job.
    """

    def __init__(self, server: Server):
        self._server = server
        self._waiting_task = _find_current_task()
        self._session: Session | None = None
        self._lock = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)

    def __enter__(self) -> RequestPool:
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def work(self, jobs: Sequence[Callable[[Session], Coroutine[Any, Any, T]]]) -> list[T]:
        """
        Runs jobs and waits for their results, as [`Server.work`] does. Several threads may call it at the same time.

        Args:
            jobs (`Sequence[Callable]`):
                Coroutine functions. Each one is called with a [`Session`].

        Returns:
            `list`: The result of each job, in order.
        """
        result = asyncio.run_coroutine_threadsafe(self._work(jobs), self._loop)
        try:
            while not result.done():
                wait([result], timeout=0.2)
                is_cancelled = self._waiting_task is not None and self._waiting_task.cancelling()
                if is_cancelled and not result.done():
                    raise asyncio.CancelledError  # how `asyncio.run` handles an interrupt
            return result.result()
        finally:
            result.cancel()

    async def _work(self, jobs: Sequence[Callable[[Session], Coroutine[Any, Any, T]]]) -> list[T]:
        async with self._lock:
            if self._session is None:
                client = self._server.connect()
                self._session = Session(self._server, client, asyncio.Semaphore(self._server.max_concurrency))
            if not self._server.is_reached:
                await _require_response(self._server, self._session.client)
                self._server.is_reached = True
        session = self._session
        return await gather(job(session) for job in jobs)

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.client.close()


def _find_current_task() -> asyncio.Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop is running
        return None


async def _require_response(server: Server, client: AsyncOpenAI) -> None:
    """Sends one request without retries, to detect a missing server at once. Any response is accepted."""
    from openai import APIConnectionError, APIStatusError

    try:
        async with asyncio.timeout(CONNECT_TIMEOUT + 1):
            await client.models.with_raw_response.list()
    except (APIStatusError, TimeoutError):  # A server that is slow to answer has accepted the connection.
        pass
    except APIConnectionError as error:
        raise ConnectionError(
            f"No server answers at `base_url`={server.address} ({_describe_cause(server, error)}). Start a server, "
            "for example with `transformers serve` or `vllm serve`, or correct `base_url`."
        ) from None


def _explain_timeout(server: Server, retries: int) -> TimeoutError:
    return TimeoutError(
        f"The server at {server.address} did not answer within `timeout`={server.timeout:g} seconds, after {retries} "
        "retries. Raise `timeout`, or lower `max_concurrency` or the maximum length of an answer."
    )


def _explain_lost_connection(server: Server, error: Exception, retries: int) -> ConnectionError:
    return ConnectionError(
        f"The server at {server.address} no longer answers after {retries} retries "
        f"({_describe_cause(server, error)}). Check its log, and start it again."
    )


def _explain_status(server: Server, status: int, body: str, headers: Mapping[str, str], retries: int) -> _Failure:
    """Explains a status that is an error, or a status of 200 with a body that is no completion."""
    answer = f"status {status}: {_shorten(server, body) or 'an empty body'}"
    is_passing = status in (200, 408, 409, 429) or (status >= 500 and status != 501)
    is_passing = {"true": True, "false": False}.get(headers.get("x-should-retry", ""), is_passing)
    if is_passing:
        problem = "returns no completion" if status == 200 else "fails"
        wait = _read_wait(headers)
        message = f"The server at {server.address} still {problem} after {retries} retries ({answer}). Check its log."
        is_soon = wait is None or wait <= LONGEST_WAIT
        message += "" if is_soon else f" It asks to wait {wait:.0f} seconds, so the request was not repeated."
        return _Failure(RuntimeError(message), is_passing=is_soon, wait=wait)
    refusal = f"The server at {server.address} refused a request ({answer})."
    if status in (400, 413, 422):
        advice = (
            "Check the length of the prompt and the fields of the request. `extra_body` changes fields, and a null "
            "value removes one."
        )
        return _Failure(RefusedRequest(f"{refusal} {advice}"), is_passing=False)
    return _Failure(
        ValueError(f"{refusal} Check the model's name, `api_key` and `base_url`, which usually ends in /v1."),
        is_passing=False,
    )


def _read_wait(headers: Mapping[str, str]) -> float | None:
    """Reads how many seconds the server asks to wait. 0 or `None` if it does not ask, or names a time that is past."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) / unit
            return seconds if seconds >= 0 else None
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def _describe_cause(server: Server, error: Exception) -> str:
    return _shorten(server, str(error.__cause__ or error))


def _shorten(server: Server, text: str) -> str:
    """Shortens text of a server to 200 characters in one line. The API key is never shown."""
    if server.api_key:
        text = text.replace(server.api_key, "***")
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:200] + "…"
