"""Judges from reward models and Python functions, and the check of a judge's probabilities."""

import math
from collections.abc import Callable

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.scoring import score
from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import require_encodable


Judge = Callable[[list[str | Messages], list[str], list[str]], list[float | None]]
"""
`judge(prompts, firsts, seconds)`: probabilities in [0, 1] that the first completion is better. 0.5 is a tie. `None`
leaves a pair out, for example because it is too long for the judge.
"""


def judge_pairs(
    judge: Judge, prompts: list[str | Messages], firsts: list[str], seconds: list[str]
) -> list[float | None]:
    """
    Calls a judge and checks its result. The judge may be the user's own function. All texts are checked before.

    Args:
        judge (`Callable`):
            The judge, see [`Judge`].
        prompts (`list`):
            Text or messages.
        firsts (`list[str]`):
            First completion of each prompt.
        seconds (`list[str]`):
            Second completion of each prompt.

    Returns:
        `list[float]`: Probabilities that the first completion is better, `None` for pairs that the judge left out.
        Without pairs the judge is not called, and the list is empty.

    Raises:
        ValueError: If a text is not valid, or the judge does not return one number in [0, 1] or `None` per pair.
    """
    if not prompts:
        return []
    for name, texts in (("prompts", prompts), ("firsts", firsts), ("seconds", seconds)):
        require_encodable(texts, name)
    probabilities = judge(prompts, firsts, seconds)
    if not hasattr(probabilities, "__len__"):
        raise ValueError(f"`judge` returned {probabilities!r}. It must return a list with one probability per pair.")
    if len(probabilities) != len(prompts):
        raise ValueError(
            f"`judge` returned {len(probabilities)} probabilities for {len(prompts)} pairs. It must return one per "
            "pair."
        )
    for pair, value in enumerate(probabilities):
        if value is not None and (isinstance(value, str | list | tuple) or not 0 <= value <= 1):
            raise ValueError(
                f"`judge` returned {value!r} for pair {pair}. It must return the probability in [0, 1] that the first "
                "completion is better, or None to leave the pair out."
            )
    return [None if value is None else float(value) for value in probabilities]


# Probabilities this close to 0.5 differ from it by rounding only. They are returned as 0.5.
TIE = 1e-6


def reward_judge(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
    share_batches: bool = False,
) -> Judge:
    r"""
    Creates a judge from a reward model, with the Bradley-Terry probability $p = \sigma(r(x, y_1) - r(x, y_2))$.

    A judge gets text only, so all completions are scored as finished.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, a sequence classifier with `num_labels=1`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        max_length (`int`, *optional*):
            Maximum number of tokens per row. Longer rows lose the beginning of their prompt.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per batch, padding included.
        share_batches (`bool`, *optional*, defaults to `False`):
            Whether the processes of `accelerate launch` share the batches of each call, as in [`score`].

    Returns:
        `Callable`: `judge(prompts, firsts, seconds)`.
    """

    def judge(prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        rewards = score(
            model,
            processing_class,
            [*prompts, *prompts],
            [*firsts, *seconds],
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            share_batches=share_batches,
        )
        first, second = torch.tensor(rewards, dtype=torch.float64).view(2, len(prompts))  # (pairs,)
        return snap_ties(torch.sigmoid(first - second))

    return judge


def function_judge(function: Callable[[str | Messages, str], float]) -> Judge:
    """
    Creates a judge from a Python function that scores one completion. The higher score wins. Equal scores are a tie.

    A function that compares two completions itself does not need this. It is a judge if it takes lists of prompts,
    first and second completions, and returns a list of probabilities.

    Args:
        function (`Callable`):
            Called as `function(prompt, completion)`. Returns a number.

    Returns:
        `Callable`: `judge(prompts, firsts, seconds)`, which returns 1, 0 or 0.5 for each pair.

    Raises:
        ValueError: When the judge is called, if a score is NaN.
    """

    def judge(prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        scores = [
            [float(function(prompt, completion)) for prompt, completion in zip(prompts, completions, strict=True)]
            for completions in (firsts, seconds)
        ]
        for row, pair in enumerate(zip(*scores, strict=True)):
            if any(math.isnan(value) for value in pair):
                raise ValueError(f"The function's score of pair {row} is NaN. It must return a number.")
        return [(first > second) + 0.5 * (first == second) for first, second in zip(*scores, strict=True)]

    return judge


def add_user_turns(judge: Judge) -> Judge:
    """
    Creates a judge that converts text prompts to a user message, for a reward model with a chat template.

    Args:
        judge (`Callable`):
            Judge that reads messages.

    Returns:
        `Callable`: `judge(prompts, firsts, seconds)`.
    """

    def judge_messages(prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        messages = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
        return judge(messages, firsts, seconds)

    return judge_messages


def snap_ties(probabilities: torch.Tensor) -> list[float]:
    """
    Replaces probabilities that differ from 0.5 by rounding only with 0.5.

    Args:
        probabilities (`torch.Tensor` of shape `(pairs,)`):
            Probabilities in [0, 1].

    Returns:
        `list[float]`: The probabilities.

    Raises:
        ValueError: If a probability is NaN.
    """
    if probabilities.isnan().any():
        row = int(probabilities.isnan().nonzero()[0])
        raise ValueError(f"The judge's probability of pair {row} is nan. Check the weights of `model` and its dtype.")
    return [0.5 if abs(probability - 0.5) < TIE else probability for probability in probabilities.tolist()]
