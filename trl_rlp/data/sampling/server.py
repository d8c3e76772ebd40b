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
from trl_rlp.data.sampling.settings import require_settings
from trl_rlp.data.server_client import Choice, Server, Session
from trl_rlp.data.turns import ends_with_assistant
from trl_rlp.data.validation import require_prompts
from trl_rlp.storage.fingerprints import value_fingerprint
from trl_rlp.storage.shards import Record, cut_shards, work_in_shards


BODY = ("temperature", "top_p", "max_tokens")
"""Settings of a sampler that go with every request."""


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
    body = {"model": model, "extra_body": extra_body, **{name: settings[name] for name in BODY}}
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
    """Draws the samples of a prompt, and remembers whether the server gives several choices at once."""

    num_generations: int
    seed: int
    gives_many: bool = True

    async def sample(self, row: int, prompt: Prompt, advance: Callable[[int], Any], session: Session) -> Record:
        choices: list[Choice] = []
        if self.gives_many:
            choices = (await session.ask(prompt, self._seed(row, 0), self.num_generations))[: self.num_generations]
            self.gives_many = len(choices) == self.num_generations
        missing = range(len(choices), self.num_generations)
        answers = await asyncio.gather(*(session.ask(prompt, self._seed(row, sample)) for sample in missing))
        choices += [answer[0] for answer in answers]
        if any(text is None for text, _ in choices):
            raise ValueError(
                f"The server answered row {row} with a message that has no content. If its model reasons before it "
                "answers raise `max_tokens`, or switch that off by `extra_body`."
            )
        advance(1)
        return {"completions": [text for text, _ in choices], "finished": [finished for _, finished in choices]}

    def _seed(self, row: int, sample: int) -> int:
        numbers = np.random.SeedSequence([self.seed, row, sample])
        return int(numbers.generate_state(1)[0]) >> 1  # 31 bits: some servers read an int32


def _require_open_turns(prompts: list[Prompt], extra_body: dict[str, Any] | None) -> None:
    if "continue_final_message" in (extra_body or {}):
        return
    for row, prompt in enumerate(prompts):
        if ends_with_assistant(prompt):
            raise ValueError(
                f"`prompts` row {row} ends with an assistant message, which many servers do not continue. Drop that "
                "message, or on vLLM and SGLang pass `extra_body={'continue_final_message': True, "
                "'add_generation_prompt': False}`."
            )
