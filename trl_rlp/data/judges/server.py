"""A judge on an OpenAI-compatible server, which answers about each pair in both orders."""

import functools
import os
from typing import Any

from trl_rlp.data.judges.answer_cache import Answer
from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.language_model import JUDGE_TEMPLATE, build_question, require_template
from trl_rlp.data.judges.verdicts import find_labels, read_verdict
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.server_client import RefusedRequest, Server, Session
from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import prompt_text


REFUSAL = "refusal"
"""Key of the reason why the server refused a question. Refusals cost nothing, so they are not kept."""

FAILURE = "failure"
"""Key of the error of a question that the server failed to answer."""

LIMITS = ("max_tokens", "max_completion_tokens")
"""Fields of a request that limit the length of an answer."""

_ENOUGH_FAILURES = 32


class ServerJudge(AskedJudge):
    """
    Compares completions with a model on a server: vLLM, SGLang, TGI, `transformers serve`, or a paid API.

    The model answers a question about each pair at `/chat/completions`, once in each order. A completion wins if it is
    called better in both orders. If the answers disagree, or one of them is unreadable, the pair is a tie.
    [`read_verdict`] reads the answers. An answer that was cut by the token limit is unreadable. If the server refuses
    a question because of its contents, for example because it is too long, the pair is left out.

    The judge keeps each answer as soon as it arrives, and never asks the same question again. After an error or an
    interrupt, another call asks only the other questions. With `cache`, this also holds for later programs.

    Args:
        base_url (`str`):
            URL of the API, usually ending in `/v1`.
        model (`str`):
            Name of the judge on the server.
        template (`str`, *optional*, defaults to `JUDGE_TEMPLATE`):
            Question with `{prompt}`, `{first}` and `{second}`, to be answered with A or B. If it calls the completions
            1 and 2, with these numbers before the fields, the answers are 1 or 2.
        max_tokens (`int`, *optional*, defaults to `16`):
            Maximum length of an answer, in tokens. A model that reasons before it answers needs more.
        tolerance (`float`, *optional*, defaults to `0.1`):
            Maximum share of unreadable answers in one call, in [0, 1]. A larger share is an error.
        api_key (`str`, *optional*):
            API key, if the server requires one. Environment variables are not read.
        max_concurrency (`int`, *optional*, defaults to `16`):
            Maximum number of concurrent requests.
        max_retries (`int`, *optional*, defaults to `5`):
            Maximum number of times that a request is repeated after a temporary failure.
        timeout (`float`, *optional*, defaults to `600.0`):
            Maximum duration of a request, in seconds.
        extra_body (`dict`, *optional*):
            Further fields of each request. They replace fields of the same name, and `None` removes a field. For a
            server that refuses `max_tokens`, pass `{"max_tokens": None, "max_completion_tokens": 2000}`.
        cache (`str` or `os.PathLike`, *optional*):
            File that stores the answers, see [`AnswerCache`]. A higher `max_tokens` asks only those questions again
            whose answers were cut.

    Attributes:
        asked (`int`): Number of answers so far, two per pair.
        unreadable (`int`): Number of unreadable answers so far. Answers that were cut are among them.
        cut (`int`): Number of answers so far that were cut by the token limit.
        refused (`int`): Number of pairs so far that the server refused.

    Raises:
        ValueError: If `template` lacks a field, a setting is out of range, or `cache` is not a file of answers.

    Example:

    ```python
    >>> judge = ServerJudge("http://localhost:8000/v1", "my-judge")
    >>> judge(["2 + 2?"], ["4"], ["5"])
    [1.0]
    ```
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        template: str = JUDGE_TEMPLATE,
        max_tokens: int = 16,
        tolerance: float = 0.1,
        api_key: str | None = None,
        max_concurrency: int = 16,
        max_retries: int = 5,
        timeout: float = 600.0,
        extra_body: dict[str, Any] | None = None,
        cache: str | os.PathLike | None = None,
    ):
        require_template(template)
        require_settings(
            max_tokens=max_tokens, max_concurrency=max_concurrency, max_retries=max_retries, timeout=timeout
        )
        body = {"model": model, "temperature": 0.0, "max_tokens": max_tokens, "extra_body": extra_body}
        self._server = Server(base_url, api_key, max_retries, max_concurrency, body, timeout)
        self.template = template
        super().__init__(tolerance, cache)

    def __call__(self, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float | None]:
        """
        Compares pairs of completions, with the arguments of [`AskedJudge`].

        Returns:
            `list[float]`: 1 if the first completion is better, 0 if the second is better, 0.5 for a tie. `None` for a
            pair that the server refused.

        Raises:
            ImportError: If `openai` is not installed.
            ConnectionError, TimeoutError, RuntimeError: If no server answers, or it still fails to answer a question
                after `max_retries`. The other questions are asked first, unless it fails to answer 32 in a row.
            ValueError: If the server refuses the API key, the model or every question, or the share of unreadable
                answers exceeds `tolerance`.
        """
        orders = [
            order
            for prompt, first, second in zip(prompts, firsts, seconds, strict=True)
            for order in ((prompt, first, second), (prompt, second, first))
        ]
        answers = self._ask([build_question(self.template, *order) for order in orders])
        self._require_answers(answers, prompts)
        labels = find_labels(self.template)
        verdicts = [read_verdict(answer["text"], labels) if _is_complete(answer) else None for answer in answers]
        refused = {row // 2: answer[REFUSAL] for row, answer in enumerate(answers) if REFUSAL in answer}
        read = [both for both in zip(answers, verdicts, strict=True) if REFUSAL not in both[0]]
        unreadable = [answer for answer, label in read if label is None]
        cut = sum(not answer["finished"] for answer in unreadable)
        self._count_answers([answer["text"] or "" for answer in unreadable], len(read), "Their pairs are ties.", cut)
        self._count_refused(refused, prompts)
        wins = {labels: 1.0, labels[::-1]: 0.0}
        return [
            None if pair in refused else wins.get(both, 0.5)
            for pair, both in enumerate(zip(verdicts[::2], verdicts[1::2], strict=True))
        ]

    def _ask(self, questions: list[str]) -> list[Answer]:
        """Returns the answer to each question, or why there is none. Only new questions are sent."""
        found = {question: self._find_answer(question) for question in questions}
        missing = [question for question, answer in found.items() if answer is None]
        if missing:
            self._failures_in_a_row = 0
            jobs = [functools.partial(self._ask_question, question) for question in missing]
            found |= zip(missing, self._server.work(jobs), strict=True)
        return [found[question] for question in questions]

    async def _ask_question(self, question: str, session: Session) -> Answer:
        try:
            choice, *_ = await session.ask([{"role": "user", "content": question}], seed=0)
        except RefusedRequest as error:
            return {REFUSAL: str(error)}
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            self._failures_in_a_row += 1
            if self._failures_in_a_row == _ENOUGH_FAILURES:
                raise
            return {FAILURE: error}
        self._failures_in_a_row = 0
        answer = {"text": choice.text, "finished": choice.finished}
        self._cache.store(*self._identify(question, choice.finished), answer=answer)
        return answer

    def _require_answers(self, answers: list[Answer], prompts: list[str | Messages]) -> None:
        """Raises the first failure, and names its pair. A later call asks again."""
        failures = {row // 2: answer[FAILURE] for row, answer in enumerate(answers) if FAILURE in answer}
        if failures:
            pair, error = next(iter(failures.items()))
            raise type(error)(
                f"{error} This leaves {len(failures)} of {len(prompts)} pairs without an answer, first pair {pair} "
                f"({prompt_text(prompts[pair])[:40]!r}). All answers are kept. Another call asks only about the rest."
            )

    def _find_answer(self, question: str) -> Answer | None:
        complete = self._cache.find(*self._identify(question, is_finished=True))
        return complete or self._cache.find(*self._identify(question, is_finished=False))

    def _identify(self, question: str, is_finished: bool) -> tuple[str, dict[str, Any], str]:
        """Returns what decides an answer. The token limit only decides an answer that was cut."""
        fields = {**self._server.body, **(self._server.body["extra_body"] or {}), "extra_body": None}
        fields |= dict.fromkeys(LIMITS) if is_finished else {}
        return self._server.base_url.rstrip("/"), fields, question


def _is_complete(answer: Answer) -> bool:
    """Checks whether an answer has a text that ended by itself."""
    return REFUSAL not in answer and answer["text"] is not None and answer["finished"]
