"""Questions to an OpenAI-compatible server: many at once, with retries, and errors that say what to do."""

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

Choice = tuple[str | None, bool]  # the text, None of a message without content, and whether it ended by itself


@dataclass
class Server:
    """
    How a server is reached and asked.

    Args:
        base_url (`str`):
            Where its API begins, usually ending in `/v1`.
        api_key (`str`, *optional*):
            Key for a server that wants one. None is taken from the environment.
        max_retries (`int`):
            How often the `openai` client repeats a request after a lost connection, a timeout or a status of 408, 409,
            429 or 5xx, waiting from half a second to eight seconds or as long as the server says.
        max_concurrency (`int`):
            Requests under way at once.
        body (`dict`):
            Fields of every request, among them `model`.
        is_reached (`bool`, *optional*, defaults to `False`):
            Whether it has answered anything yet.
    """

    base_url: str
    api_key: str | None
    max_retries: int
    max_concurrency: int
    body: dict[str, Any]
    is_reached: bool = False

    def work(self, jobs: Sequence[Callable[[Session], Coroutine[Any, Any, T]]]) -> list[T]:
        """
        Does jobs that ask the server, side by side; also inside a running event loop, as in a notebook.

        Args:
            jobs (`Sequence[Callable]`):
                Each is called with a [`Session`] and awaited.

        Returns:
            `list`: what each of them gave.

        Raises:
            ImportError: if `openai` is not installed.
            ConnectionError: if no server answers.
            RuntimeError: if the server still fails after `max_retries`.
            ValueError: if it refuses a request or answers something that is not a completion.
        """
        return _run(self._work(jobs))

    async def _work(self, jobs: Sequence[Callable[[Session], Coroutine[Any, Any, T]]]) -> list[T]:
        async with self._client() as client:
            if not self.is_reached:
                await _require_answer(self, client)
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
                "Asking a server needs the `openai` package. Install it with `pip install trl-rlp[server]`."
            ) from error
        # Without a key the client would send OPENAI_API_KEY of the environment to whatever server this is.
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key or "none", max_retries=self.max_retries)


@dataclass
class Session:
    """
    An open connection to a server.

    Args:
        server ([`Server`]):
            How it is asked.
        client (`openai.AsyncOpenAI`):
            The connection.
        limit (`asyncio.Semaphore`):
            Lets so many requests be under way at once.
    """

    server: Server
    client: AsyncOpenAI
    limit: asyncio.Semaphore

    async def ask(self, prompt: str | Messages, seed: int, n: int = 1) -> list[Choice]:
        """
        Asks for completions: of text at `/completions`, of messages at `/chat/completions`.

        Args:
            prompt (`str` or `list[dict[str, str]]`):
                Text or messages.
            seed (`int`):
                Goes with the request; whether it decides anything is up to the server.
            n (`int`, *optional*, defaults to `1`):
                Choices to ask for.

        Returns:
            `list[tuple[str, bool]]`: the choices that came back, at least one, each with whether it ended by itself;
            none where the server refuses to give more than one. The text is `None` where a message has no content, as
            a refusal, or an answer that ended while the model still reasoned.
        """
        from openai import BadRequestError, OpenAIError, UnprocessableEntityError

        is_chat = not isinstance(prompt, str)
        endpoint = self.client.chat.completions if is_chat else self.client.completions
        request = {"messages" if is_chat else "prompt": prompt, "seed": seed, **self.server.body}
        try:
            async with self.limit:
                answer = await endpoint.with_raw_response.create(**request, **({"n": n} if n > 1 else {}))
        except OpenAIError as error:
            if n > 1 and isinstance(error, (BadRequestError, UnprocessableEntityError)):
                return []
            raise _explained(error, self.server) from None
        return _choices(answer.http_response.text, is_chat, self.server)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, in a thread of its own where an event loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _require_answer(server: Server, client: AsyncOpenAI) -> None:
    """Asks once, without retries, so that a server that is not there is known at once. Any answer will do."""
    from openai import APIConnectionError, APIStatusError

    try:
        await client.with_options(max_retries=0, timeout=30).models.with_raw_response.list()
    except APIStatusError:
        pass
    except APIConnectionError as error:
        raise _explained(error, server) from None


def _choices(text: str, is_chat: bool, server: Server) -> list[Choice]:
    try:
        choices = json.loads(text)["choices"]
        pairs = [(each["message"]["content"] if is_chat else each["text"], each["finish_reason"]) for each in choices]
    except (ValueError, KeyError, TypeError):
        pairs = []
    if not pairs or not all(isinstance(said, str) or (said is None and is_chat) for said, _ in pairs):
        raise ValueError(
            f"The server at `base_url`={server.base_url} answered something that is not a completion: "
            f"{_one_line(text) or 'an empty body'}. Check that `base_url` is that of an OpenAI-compatible API; it "
            "usually ends in /v1."
        )
    return [(said and _without_half_characters(said), reason == "stop") for said, reason in pairs]


def _without_half_characters(text: str) -> str:
    """The same text; a server that cuts within a character may send half of a surrogate pair, which UTF-8 lacks."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _explained(error: OpenAIError, server: Server) -> Exception:
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
            f"{status}: {answer}). Look at its log; what was sampled into an `output_dir` is kept."
        )
    return ValueError(
        f"The server at `base_url`={server.base_url} refused a request (status {status}: {answer}). Check `model`, "
        "`api_key`, `extra_body` and the length of the prompts."
    )


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:200] + "…"
