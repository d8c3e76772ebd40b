"""Policy samples P from an OpenAI-compatible server: vLLM, SGLang, TGI, `transformers serve`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from transformers.utils import logging

from trl_rlp.data.sampling.completion_text import Prompt
from trl_rlp.data.sampling.sampling_call import COMPLETIONS, add_completions
from trl_rlp.data.sampling.seeds import derive_seed
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.server_answers import Choice
from trl_rlp.data.server_client import RefusedRequest, RequestPool, Server, Session, gather
from trl_rlp.data.template_options import list_template_options
from trl_rlp.data.turns import drop_missing_keys, ends_with_assistant
from trl_rlp.data.validation import require_prompts
from trl_rlp.storage.fingerprints import dataset_fingerprint
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.shard_folder import Record
from trl_rlp.storage.shards import choose_shard_size, map_shards


logger = logging.get_logger(__name__)

_REQUEST_SETTINGS = ("temperature", "top_p", "max_tokens")
_ENOUGH_PROMPTS = 32
"""If this many prompts in a row have no answer, the sampling stops."""
SHARD_SIZE = 64
"""Smallest number of prompts per shard, if the user has not set it."""

_PROMPTS_AHEAD = 8
"""Prompts of unfinished shards for each concurrent request. The slow ones of them leave enough others to ask."""


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
    timeout: float = 600.0,
    extra_body: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    shard_size: int | None = None,
) -> Dataset:
    """
    Samples n completions of every prompt from a server: P of Algorithm 1, step 4.

    Text is sent to `/completions`, messages to `/chat/completions`. One request asks for n completions. If fewer come
    back or the server refuses such requests, each missing completion gets its own request, and so does every
    completion from then on. The function works inside a running event loop, for example in a notebook.

    A prompt is left out, with a warning that names its row, in two cases: the server refuses it (status 400, 413 or
    422) or fails to answer it, or one of its completions has no text, for example because the model was still
    reasoning at the token limit. It is an error if this happens to all prompts, or to 32 prompts in a row.

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
            Maximum number of times that a request is repeated after a lost connection, a timeout, a status of 408,
            409, 429 or 5xx (except 501), or a response that is not a completion. The wait is 0.5 to 8 seconds, or as
            long as the server asks.
        timeout (`float`, *optional*, defaults to `600.0`):
            Maximum duration of a request, in seconds.
        extra_body (`dict`, *optional*):
            Further fields of each request. They replace fields of the same name, and `None` removes a field. For a
            server that refuses `max_tokens`, pass `{"max_tokens": None, "max_completion_tokens": 256}`.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards. An interrupted run resumes from it, and asks again about prompts that
            the server refused or failed to answer.
        shard_size (`int`, *optional*):
            Number of prompts per shard. Defaults to 64, or to a thousandth of the prompts if that is more.

    Returns:
        `datasets.Dataset`: The prompts in their order, with `completions` (n texts) and `finished` (n booleans:
        whether the finish reason is `"stop"` or a synonym, see [`FINISHED`]).

    Raises:
        ImportError: If `openai` is not installed.
        TypeError: If an argument has the wrong type.
        ConnectionError, TimeoutError, RuntimeError: If no server answers, or if it answers no prompt, or none of 32
            prompts in a row, within `timeout` and `max_retries`.
        ValueError: If a setting is out of range, there are no prompts, a prompt is empty, the server refuses the API
            key or the model, it refuses all prompts or answers them without text, or `output_dir` holds samples of
            another run.

    Example:

    ```python
    >>> samples = sample_from_server(prompts, "http://localhost:8000/v1", "my-policy", num_generations=10)
    ```
    """
    prompts = require_prompts(prompts)
    settings = {
        "num_generations": num_generations,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "shard_size": choose_shard_size(len(prompts), SHARD_SIZE) if shard_size is None else shard_size,
    }
    require_settings(**settings, max_concurrency=max_concurrency, max_retries=max_retries, timeout=timeout)
    _require_continuation(prompts, extra_body)
    _require_no_template_options(prompts)
    body = {"model": model, "extra_body": extra_body, **{name: settings[name] for name in _REQUEST_SETTINGS}}
    server = Server(base_url, api_key, max_retries, max_concurrency, body, timeout)
    rows = prompts.select_columns(["prompt"]).add_column("row", np.arange(len(prompts)))
    with RequestPool(server) as pool:
        sampler = _Sampler(pool, num_generations, seed, len(prompts), settings["shard_size"])
        records = map_shards(
            rows,
            sampler.sample_shard,
            description="Sampling",
            shard_size=settings["shard_size"],
            at_once=1 if max_concurrency == 1 else 1 + ceil(_PROMPTS_AHEAD * max_concurrency / settings["shard_size"]),
            output_dir=output_dir,
            fingerprint={**body, **settings, "prompts": dataset_fingerprint(prompts, ["prompt"])},
            features=Features({**COMPLETIONS, "failure": Value("string")}),
            is_final=lambda record: record["failure"] is None,
        )
    return _add_complete_records(prompts, records, sampler.error_class)


def _clean(prompt: Prompt) -> Prompt:
    return prompt if isinstance(prompt, str) else drop_missing_keys(prompt)


@dataclass
class _Sampler:
    """Samples the completions of a shard, and remembers whether the server returns several choices per request."""

    pool: RequestPool
    num_generations: int
    seed: int
    num_rows: int
    shard_size: int
    returns_many: bool = True
    never_returns_many: bool = False
    unanswered_in_a_row: int = 0
    error_class: type[Exception] = ValueError
    final_error: Exception | None = None

    def sample_shard(self, index: int, batch: dict[str, list], advance: Callable[[int], Any]) -> dict[str, list]:
        """Stops a run whose prompts are not answered any more."""
        # Several choices may have failed because the server had a passing problem. The next shard tries them again.
        self.returns_many = not self.never_returns_many
        rows = zip(batch["row"], batch["prompt"], strict=True)
        records = self.pool.work(
            [functools.partial(self._sample, row, _clean(prompt), advance) for row, prompt in rows]
        )
        # In a resumed run, a shard may have only prompts without an answer. The server has answered the others.
        is_resumed = len(records) < min(self.shard_size, self.num_rows - index * self.shard_size)
        is_answered = is_resumed or any(map(_is_complete, records))
        self.unanswered_in_a_row = 0 if is_answered else self.unanswered_in_a_row + len(records)
        if self.unanswered_in_a_row >= _ENOUGH_PROMPTS:
            failures = dict(zip(batch["row"], records, strict=True))
            self.final_error = self.error_class(_describe_left_out(failures, len(records)))
            raise self.final_error
        return {name: [record[name] for record in records] for name in records[0]}

    async def _sample(self, row: int, prompt: Prompt, advance: Callable[[int], Any], session: Session) -> Record:
        """Returns n completions and whether they are finished, or why there are none."""
        try:
            choices = await self._ask_for_many(row, prompt, session) if self.returns_many else []
            missing = range(len(choices), self.num_generations)
            requests = (session.ask(prompt, self._derive_seed(row, sample)) for sample in missing)
            choices += [choice for choice, *_ in await gather(requests)]
            failure = None
        except (RefusedRequest, RuntimeError, ConnectionError, TimeoutError) as error:
            if self.final_error is not None:  # another shard has stopped the run
                raise self.final_error from None
            self.error_class = type(error)
            choices, failure = [], str(error)
        advance(1)
        return {
            "completions": [text for text, _ in choices],
            "finished": [finished for _, finished in choices],
            "failure": failure,
        }

    async def _ask_for_many(self, row: int, prompt: Prompt, session: Session) -> list[Choice]:
        """Asks for n choices at once. If this fails, it asks for one, to learn whether n was the reason."""
        seed = self._derive_seed(row, 0)
        try:
            choices = await session.ask(prompt, seed, self.num_generations)
            is_refused = len(choices) < self.num_generations
        except (ValueError, RuntimeError, TimeoutError) as error:
            choices = (await session.ask(prompt, seed))[:1]
            self.returns_many, is_refused = False, not isinstance(error, RuntimeError)
        if is_refused:
            self.returns_many, self.never_returns_many = False, True
        return choices[: self.num_generations]

    def _derive_seed(self, row: int, sample: int) -> int:
        return derive_seed(self.seed, row, sample, bits=31)  # some servers read an int32


def _require_continuation(prompts: Dataset, extra_body: dict[str, Any] | None) -> None:
    """Checks that no prompt ends with an assistant message, unless `extra_body` asks the server to continue it."""
    if "continue_final_message" in (extra_body or {}):
        return
    for row, prompt in enumerate(prompts["prompt"]):
        if ends_with_assistant(prompt):
            raise ValueError(
                f"`prompts` row {row} ends with an assistant message, which many servers do not continue. Drop that "
                "message, or on vLLM and SGLang pass `extra_body={'continue_final_message': True, "
                "'add_generation_prompt': False}`."
            )


def _require_no_template_options(prompts: Dataset) -> None:
    """Checks that no row has arguments of the chat template. Scoring would read them, but no server would."""
    for row, options in enumerate(list_template_options(prompts) or []):
        if options and not isinstance(prompts[row]["prompt"], str):
            raise ValueError(
                f"`prompts` row {row} sets {list(options)} in `tools` or `chat_template_kwargs`, which the server "
                "would not get. Remove these columns. For all prompts, vLLM and SGLang read "
                "`extra_body={'chat_template_kwargs': {...}}`. Describe tools in a system message."
            )


def _is_complete(record: Record) -> bool:
    return record["failure"] is None and None not in record["completions"]


def _add_complete_records(prompts: Dataset, records: Dataset, error_class: type[Exception]) -> Dataset:
    """Adds the completions to their prompts. Prompts without n completions are left out, with a warning."""
    incomplete = {row: record for row, record in enumerate(records) if not _is_complete(record)}
    if incomplete:
        message = _describe_left_out(incomplete, len(records))
        if len(incomplete) == len(records):
            raise error_class(message)
        if process_state().is_main_process:
            logger.warning(f"{message} These prompts are left out.")
        complete = [row for row in range(len(records)) if row not in incomplete]
        prompts, records = prompts.select(complete), records.select(complete)
    return add_completions(prompts, records)


def _describe_left_out(records: dict[int, Record], total: int) -> str:
    """Says which rows have no n completions with text, and why."""
    failed = [row for row, record in records.items() if record["failure"] is not None]
    silent = [row for row, record in records.items() if record["failure"] is None and not _is_complete(record)]
    sentences = []
    if failed:
        sentences.append(
            f"{len(failed)} of {total} prompts have no completions: rows {_list_rows(failed)}. The reason for "
            f"row {failed[0]}: {records[failed[0]]['failure']}"
        )
    if silent:
        count = sum(records[row]["completions"].count(None) for row in silent)
        sentences.append(
            f"{len(silent)} of {total} prompts have completions without text ({count} in all): rows "
            f"{_list_rows(silent)}. If the model was still reasoning at the token limit, raise `max_tokens` "
            "(`--max_new_tokens` of `trl-rlp sample`), or turn reasoning off with `extra_body`."
        )
    return " ".join(sentences)


def _list_rows(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
