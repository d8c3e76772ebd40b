"""A judge on an OpenAI-compatible server, which answers about each pair in both orders."""

import asyncio
import functools
from typing import Any

from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.language_model import JUDGE_TEMPLATE, build_question, require_template
from trl_rlp.data.judges.verdicts import read_verdict
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.server_client import Server, Session
from trl_rlp.data.turns import Messages


class ServerJudge(AskedJudge):
    """
    Compares completions with a model on a server: vLLM, SGLang, TGI, `transformers serve`, or a paid API.

    The model answers a question about each pair at `/chat/completions`, once in each order. A completion wins if it is
    called better in both orders. If the answers disagree, or one of them is unreadable, the pair is a tie.
    [`read_verdict`] reads the answers.

    Args:
        base_url (`str`):
            URL of the API, usually ending in `/v1`.
        model (`str`):
            Name of the judge on the server.
        template (`str`, *optional*, defaults to `JUDGE_TEMPLATE`):
            Question with `{prompt}`, `{first}` and `{second}`, to be answered with A or B.
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
        extra_body (`dict`, *optional*):
            Further fields of each request.

    Attributes:
        asked (`int`): Number of answers so far, two per pair.
        unreadable (`int`): Number of unreadable answers so far.

    Raises:
        ValueError: If `template` lacks a field or a setting is out of range.

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
        extra_body: dict[str, Any] | None = None,
    ):
        super().__init__(tolerance)
        require_template(template)
        require_settings(max_tokens=max_tokens, max_concurrency=max_concurrency, max_retries=max_retries)
        body = {"model": model, "temperature": 0.0, "max_tokens": max_tokens, "extra_body": extra_body}
        self._server = Server(base_url, api_key, max_retries, max_concurrency, body)
        self.template = template

    def __call__(self, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        """
        Compares pairs of completions, with the arguments of [`AskedJudge`].

        Returns:
            `list[float]`: 1 if the first completion is better, 0 if the second is better, 0.5 for a tie.

        Raises:
            ImportError: If `openai` is not installed.
            ConnectionError: If no server answers.
            RuntimeError: If the server still fails after `max_retries`.
            ValueError: If the server refuses a request, or the share of unreadable answers exceeds `tolerance`.
        """
        pairs = zip(prompts, firsts, seconds, strict=True)
        answers = self._server.work([functools.partial(self._ask_both_orders, *pair) for pair in pairs])
        texts = [text or "" for pair in answers for text in pair]
        verdicts = [read_verdict(text) for text in texts]
        unreadable = [text for text, letter in zip(texts, verdicts, strict=True) if letter is None]
        self._count_answers(unreadable, len(texts), "Their pairs are ties.")
        wins = {("A", "B"): 1.0, ("B", "A"): 0.0}
        return [wins.get(both, 0.5) for both in zip(verdicts[::2], verdicts[1::2], strict=True)]

    async def _ask_both_orders(
        self, prompt: str | Messages, first: str, second: str, session: Session
    ) -> tuple[str | None, str | None]:
        questions = (build_question(self.template, prompt, *order) for order in ((first, second), (second, first)))
        requests = (session.ask([{"role": "user", "content": question}], seed=0) for question in questions)
        (original, *_), (swapped, *_) = await asyncio.gather(*requests)
        return original[0], swapped[0]
