"""A judge behind an OpenAI-compatible server, asked about each pair in both orders."""

import asyncio
import functools
from typing import Any

from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.language_model_judge import JUDGE_TEMPLATE, judge_question, require_template
from trl_rlp.data.judges.verdicts import verdict
from trl_rlp.data.sampling.settings import require_settings
from trl_rlp.data.server_client import Server, Session
from trl_rlp.data.turns import Messages


class ServerJudge(AskedJudge):
    """
    Judges outputs by what a model on a server answers: vLLM, SGLang, TGI, `transformers serve`, or a paid API.

    Each pair is asked in both orders at `/chat/completions`. An output that is called better both times wins; where
    the answers disagree, or one of them cannot be read, the pair is a draw. What can be read is what
    [`verdict`] reads.

    Args:
        base_url (`str`):
            Where the server's API begins, usually ending in `/v1`.
        model (`str`):
            The judge's name on the server.
        template (`str`, *optional*, defaults to `JUDGE_TEMPLATE`):
            Question with `{prompt}`, `{first}` and `{second}` that is answered with A or B.
        max_tokens (`int`, *optional*, defaults to `16`):
            Longest answer, in tokens. A model that reasons before it answers needs more.
        tolerance (`float`, *optional*, defaults to `0.1`):
            Share of answers that may be unreadable, in [0, 1], before a call is an error.
        api_key (`str`, *optional*):
            Key for a server that wants one. None is taken from the environment.
        max_concurrency (`int`, *optional*, defaults to `16`):
            Requests under way at once.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated where that may help.
        extra_body (`dict`, *optional*):
            Further fields of each request.

    Attributes:
        asked (`int`): answers so far, two a pair.
        unreadable (`int`): how many of them could not be read.

    Raises:
        ValueError: if `template` lacks a field or a setting is out of range.

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
        Compares outputs, as [`AskedJudge`].

        Returns:
            `list[float]`: 1 where the first output is better, 0 where the second is, one half for a draw.

        Raises:
            ImportError: if `openai` is not installed.
            ConnectionError: if no server answers.
            RuntimeError: if the server still fails after `max_retries`.
            ValueError: if the server refuses a request, or more answers than `tolerance` cannot be read.
        """
        pairs = zip(prompts, firsts, seconds, strict=True)
        answers = self._server.work([functools.partial(self._in_both_orders, *pair) for pair in pairs])
        said = [text or "" for pair in answers for text in pair]
        verdicts = [verdict(text) for text in said]
        unreadable = [text for text, letter in zip(said, verdicts, strict=True) if letter is None]
        self._count(unreadable, len(said), "Their pairs are draws.")
        wins = {("A", "B"): 1.0, ("B", "A"): 0.0}
        return [wins.get(both, 0.5) for both in zip(verdicts[::2], verdicts[1::2], strict=True)]

    async def _in_both_orders(
        self, prompt: str | Messages, first: str, second: str, session: Session
    ) -> tuple[str | None, str | None]:
        questions = (judge_question(self.template, prompt, *order) for order in ((first, second), (second, first)))
        asked = (session.ask([{"role": "user", "content": question}], seed=0) for question in questions)
        (straight, *_), (swapped, *_) = await asyncio.gather(*asked)
        return straight[0], swapped[0]
