"""Who of two outputs is better: callables that give the probability that the first is."""

import math
from collections.abc import Callable

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.scoring import score
from trl_rlp.data.turns import Messages


Judge = Callable[[list[str | Messages], list[str], list[str]], list[float]]
"""`judge(prompts, firsts, seconds)`: probabilities in [0, 1] that the first output is better; one half is a tie."""


def judge_pairs(judge: Judge, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
    """
    Asks a judge, whoever wrote it, and checks what it says.

    Args:
        judge (`Callable`):
            See [`Judge`].
        prompts (`list`):
            Text or messages.
        firsts (`list[str]`):
            One output a prompt.
        seconds (`list[str]`):
            The other output of each prompt.

    Returns:
        `list[float]`: probabilities that the first output is better; none of no pairs, about which it is not asked.

    Raises:
        ValueError: if there is not one a pair, or one is no number in [0, 1].
    """
    if not prompts:
        return []
    said = judge(prompts, firsts, seconds)
    if not hasattr(said, "__len__"):
        raise ValueError(f"`judge` gave {said!r}. Let it give a list of probabilities, one a pair.")
    if len(said) != len(prompts):
        raise ValueError(f"`judge` gave {len(said)} probabilities for {len(prompts)} pairs. Let it give one a pair.")
    for pair, value in enumerate(said):
        if value is None or isinstance(value, str | list | tuple) or not 0 <= value <= 1:
            raise ValueError(
                f"`judge` said {value!r} of pair {pair}, but must give the probability in [0, 1] that the first "
                "output is better."
            )
    return [float(value) for value in said]


# Probabilities this close to one half differ from it by rounding only, and are given as one half.
TIE = 1e-6


def reward_judge(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
) -> Judge:
    r"""
    Makes a judge of a reward model: $p = \sigma(r(x, y_1) - r(x, y_2))$, the Bradley-Terry probability.

    Outputs are taken as finished, since a judge sees text alone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, a sequence classifier with `num_labels=1`.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Its tokenizer.
        max_length (`int`, *optional*):
            Longest input in tokens; what is longer loses the beginning of its prompt.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Tokens a batch holds, padding included.

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
        )
        first, second = torch.tensor(rewards, dtype=torch.float64).view(2, len(prompts))  # (pairs,)
        return snap_ties(torch.sigmoid(first - second))

    return judge


def function_judge(function: Callable[[str | Messages, str], float]) -> Judge:
    """
    Makes a judge of a Python function that scores one output: the higher score is better, equal ones are a tie.

    A function that compares two outputs by itself needs nothing of this: it is a judge if it takes lists of prompts,
    first and second outputs and gives a list of probabilities.

    Args:
        function (`Callable`):
            Called as `function(prompt, output)`; gives a number.

    Returns:
        `Callable`: `judge(prompts, firsts, seconds)`, which gives 1, 0 or one half.

    Raises:
        ValueError: when called, if a score is NaN.
    """

    def judge(prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        scores = [
            [float(function(prompt, output)) for prompt, output in zip(prompts, outputs, strict=True)]
            for outputs in (firsts, seconds)
        ]
        for row, pair in enumerate(zip(*scores, strict=True)):
            if any(math.isnan(value) for value in pair):
                raise ValueError(f"The function's score of pair {row} is NaN. Let it give a number for every output.")
        return [(first > second) + 0.5 * (first == second) for first, second in zip(*scores, strict=True)]

    return judge


def with_user_turns(judge: Judge) -> Judge:
    """
    Gives a judge that reads prompts of text as a user's message, for a reward model with a chat template.

    Args:
        judge (`Callable`):
            One that reads messages.

    Returns:
        `Callable`: `judge(prompts, firsts, seconds)`.
    """

    def turned(prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        turns = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
        return judge(turns, firsts, seconds)

    return turned


def snap_ties(probabilities: torch.Tensor) -> list[float]:
    """
    Gives probabilities that differ from one half by rounding only as one half.

    Args:
        probabilities (`torch.Tensor` of shape `(pairs,)`):
            In [0, 1].

    Returns:
        `list[float]`.

    Raises:
        ValueError: if one is NaN.
    """
    if probabilities.isnan().any():
        row = int(probabilities.isnan().nonzero()[0])
        raise ValueError(f"The judge's probability of pair {row} is nan. Check the weights of `model` and its dtype.")
    return [0.5 if abs(probability - 0.5) < TIE else probability for probability in probabilities.tolist()]
