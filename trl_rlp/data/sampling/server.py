"""Policy samples P from an OpenAI-compatible server: vLLM, SGLang, TGI, `transformers serve`."""

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.sampling.in_process import Prompt, add_completions
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.server_client import Choice, Server, Session
from trl_rlp.data.turns import ends_with_assistant
from trl_rlp.data.validation import require_prompts
from trl_rlp.storage.fingerprints import value_fingerprint
from trl_rlp.storage.shards import Record, cut_shards, work_in_shards


_REQUEST_SETTINGS = ("temperature", "top_p", "max_tokens")


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

    Text is sent to `/completions`, messages to `/chat/completions`. One request asks for n completions. If fewer come
    back, each missing completion gets its own request, and so does every completion from then on. The function works
    inside a running event loop, for example in a notebook.

    The server decides about two points:

    - Each request has its own seed. But most servers do not promise that the seed determines the completion,
      especially with concurrent requests.
    - The server may change the distribution. For a vLLM server that reads defaults from the model's
      `generation_config`, pass `extra_body={"top_k": -1}`.

    Args:
        prompts ([`~datasets.Dataset`]):
            Column `prompt`: text, or messages with `role` and `content`. Other columns are kept.
        base_url (`str`):
            URL of the API, usually ending in `/v1`.
        model (`str`):
            Name of the policy on the server. A resumed run does not notice if the server has other weights under the
            same name.
        num_generations (`int`, *optional*, defaults to `10`):
            n in the paper: completions per prompt, at least 2.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits. Above 0.
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass to sample from, in (0, 1].
        max_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a completion, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed from which the seeds of all requests are derived.
        api_key (`str`, *optional*):
            API key, if the server requires one. Environment variables are not read, and the key is not written to
            `output_dir`.
        max_concurrency (`int`, *optional*, defaults to `16`):
            Maximum number of concurrent requests of each process.
        max_retries (`int`, *optional*, defaults to `5`):
            Maximum number of times that the `openai` client repeats a request after a lost connection, a timeout or a
            status of 408, 409, 429 or 5xx. It waits 0.5 to 8 seconds, or as long as the server asks.
        extra_body (`dict`, *optional*):
            Further fields of each request.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards. An interrupted run resumes from it.
        shard_size (`int`, *optional*, defaults to `64`):
            Number of prompts per shard.

    Returns:
        `datasets.Dataset`: The prompts in their order, with `completions` (n texts) and `finished` (n booleans:
        whether the server gave `"stop"` as the finish reason).

    Raises:
        ImportError: If `openai` is not installed.
        TypeError: If an argument has the wrong type.
        ConnectionError: If no server answers.
        RuntimeError: If the server still fails after `max_retries`.
        ValueError: If a setting is out of range, there are no prompts, a prompt is empty, the server refuses a request
            or its response is not a completion, or `output_dir` holds samples of another run.

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
    _require_continuation(texts, extra_body)
    body = {"model": model, "extra_body": extra_body, **{name: settings[name] for name in _REQUEST_SETTINGS}}
    server = Server(base_url, api_key, max_retries, max_concurrency, body)
    sampler = _Sampler(num_generations, seed)

    def sample_shard(index: int, rows: list[int], advance: Callable[[int], Any]) -> list[Record]:
        return server.work([functools.partial(sampler.sample, row, texts[row], advance) for row in rows])

    records = work_in_shards(
        cut_shards(list(range(len(texts))), shard_size),
        sample_shard,
        description="Sampling",
        output_dir=output_dir,
        fingerprint={**body, **settings, "base_url": base_url.rstrip("/"), "prompts": value_fingerprint(texts)},
    )
    return add_completions(prompts, records)


@dataclass
class _Sampler:
    """Samples the completions of a prompt, and remembers whether the server returns several choices per request."""

    num_generations: int
    seed: int
    returns_many: bool = True

    async def sample(self, row: int, prompt: Prompt, advance: Callable[[int], Any], session: Session) -> Record:
        choices: list[Choice] = []
        if self.returns_many:
            choices = await session.ask(prompt, self._derive_seed(row, 0), self.num_generations)
            choices = choices[: self.num_generations]
            self.returns_many = len(choices) == self.num_generations
        missing = range(len(choices), self.num_generations)
        requests = (session.ask(prompt, self._derive_seed(row, sample)) for sample in missing)
        choices += [choice for choice, *_ in await asyncio.gather(*requests)]
        if any(text is None for text, _ in choices):
            raise ValueError(
                f"The server answered row {row} with a message that has no content. If its model reasons before it "
                "answers, raise `max_tokens`, or turn reasoning off with `extra_body`."
            )
        advance(1)
        return {"completions": [text for text, _ in choices], "finished": [finished for _, finished in choices]}

    def _derive_seed(self, row: int, sample: int) -> int:
        numbers = np.random.SeedSequence([self.seed, row, sample])
        return int(numbers.generate_state(1)[0]) >> 1  # 31 bits: some servers read an int32


def _require_continuation(prompts: list[Prompt], extra_body: dict[str, Any] | None) -> None:
    """Checks that no prompt ends with an assistant message, unless `extra_body` asks the server to continue it."""
    if "continue_final_message" in (extra_body or {}):
        return
    for row, prompt in enumerate(prompts):
        if ends_with_assistant(prompt):
            raise ValueError(
                f"`prompts` row {row} ends with an assistant message, which many servers do not continue. Drop that "
                "message, or on vLLM and SGLang pass `extra_body={'continue_final_message': True, "
                "'add_generation_prompt': False}`."
            )
