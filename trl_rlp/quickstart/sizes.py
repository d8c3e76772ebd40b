"""How much work the quickstart does, and how it fits a time budget on a busy machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class Sizes:
    """
    Amounts of work. The number of outputs a question and γ are the paper's and never shrink.

    Args:
        demonstrations (`int`, *optional*, defaults to `72`):
            Questions that π_SFT learns from.
        demonstration_epochs (`int`, *optional*, defaults to `2`):
            Passes over them.
        preference_questions (`int`, *optional*, defaults to `107`):
            Questions that D is about.
        unlabeled_questions (`int`, *optional*, defaults to `105`):
            Questions of U.
        heldout_questions (`int`, *optional*, defaults to `74`):
            Questions that nothing is trained on.
        num_generations (`int`, *optional*, defaults to `10`):
            n, outputs a question.
        evaluation_generations (`int`, *optional*, defaults to `4`):
            Outputs a question when a policy is evaluated.
        reward_epochs (`int`, *optional*, defaults to `3`):
            Passes over the preferences.
        policy_rollouts (`int`, *optional*, defaults to `6`):
            Rollouts of PPO of each policy.
        completions_per_rollout (`int`, *optional*, defaults to `32`):
            Completions of a rollout, each to a question of its own; an even number.
    """

    demonstrations: int = 72
    demonstration_epochs: int = 2
    preference_questions: int = 107
    unlabeled_questions: int = 105
    heldout_questions: int = 74
    num_generations: int = 10
    evaluation_generations: int = 4
    reward_epochs: int = 3
    policy_rollouts: int = 6
    completions_per_rollout: int = 32


SHRINKING = {
    "preference_questions": 24,
    "unlabeled_questions": 32,  # a rollout's
    "heldout_questions": 16,
    "policy_rollouts": 2,
}
"""What a time budget may shrink, and the least that is left of it."""

PAIRS_PER_QUESTION = 1.3
"""Pairs of D a question, about: some questions have only right or only wrong outputs."""

SYNTHETIC_SHARE = 0.6
"""Synthetic pairs a question of U, about."""

SECONDS = {
    "demonstration": 0.07,
    "sampled output": 0.026,
    "trained pair": 0.14,
    "policy completion": 0.34,
    "scored text": 0.04,
    "stage": 4.0,
    "start": 8.0,
}
"""
Wall time of one unit of work on two free cores, measured; a stage loads and saves models besides, and the first one
imports what all need.
"""


def demonstration_seconds(sizes: Sizes) -> float:
    """
    Gives the time of the supervised fine-tuning on two free cores.

    Args:
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `float`, seconds.
    """
    read = sizes.demonstrations * sizes.demonstration_epochs
    return SECONDS["start"] + SECONDS["stage"] + SECONDS["demonstration"] * read


def preference_seconds(sizes: Sizes) -> float:
    """
    Gives the time to sample what the simulated preferences are about, on two free cores.

    Args:
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `float`, seconds.
    """
    outputs = sizes.num_generations * (sizes.preference_questions + sizes.heldout_questions)
    return SECONDS["stage"] + SECONDS["sampled output"] * outputs


def algorithm_seconds(sizes: Sizes) -> float:
    """
    Gives the time of Algorithm 1 and its evaluation on two free cores.

    Args:
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `float`, seconds.
    """
    human = PAIRS_PER_QUESTION * sizes.preference_questions
    synthetic = SYNTHETIC_SHARE * sizes.unlabeled_questions
    heldout = PAIRS_PER_QUESTION * sizes.heldout_questions
    outputs = (
        sizes.num_generations * sizes.unlabeled_questions + 3 * sizes.evaluation_generations * sizes.heldout_questions
    )
    scored = 3 * sizes.unlabeled_questions + 2 * 2 * (2.5 * heldout + 0.7 * sizes.unlabeled_questions + synthetic)
    return (
        8 * SECONDS["stage"]
        + SECONDS["trained pair"] * sizes.reward_epochs * (2 * human + synthetic)
        + SECONDS["policy completion"] * 2 * sizes.policy_rollouts * sizes.completions_per_rollout
        + SECONDS["sampled output"] * outputs
        + SECONDS["scored text"] * scored
    )


def shrink(sizes: Sizes, share: float) -> Sizes:
    """
    Gives a share of the work.

    Args:
        sizes ([`Sizes`]):
            All of it.
        share (`float`):
            In [0, 1]; a quantity in [`SHRINKING`] does not fall below the value there, nor rise above what it was.

    Returns:
        [`Sizes`].
    """
    values = {entry.name: vars(sizes)[entry.name] for entry in fields(sizes) if entry.name in SHRINKING}
    return replace(
        sizes, **{name: min(value, max(SHRINKING[name], round(share * value))) for name, value in values.items()}
    )


def fit(
    sizes: Sizes, seconds_left: float, slowdown: float, remaining: Callable[[Sizes], float]
) -> tuple[Sizes, float]:
    """
    Gives the largest share of the work that fits the time that is left.

    Args:
        sizes ([`Sizes`]):
            All of it.
        seconds_left (`float`):
            Wall time to the end of the budget.
        slowdown (`float`):
            How many times longer this machine took so far than two free cores.
        remaining (`Callable[[Sizes], float]`):
            Seconds that the remaining work takes on two free cores.

    Returns:
        `tuple[Sizes, float]`: the sizes, and the share in [0.05, 1]. If nothing fits, the smallest share.
    """
    share = 1.0
    while share > 0.05 and slowdown * remaining(shrink(sizes, share)) > seconds_left:
        share = round(share - 0.05, 2)
    return shrink(sizes, share), share


def fastest_threads(repeats: int = 5) -> int:
    """
    Gives the number of threads that multiplies matrices fastest: all, or one where other programs hold the cores.

    Two threads that wait for each other on a busy machine are slower than one.

    Args:
        repeats (`int`, *optional*, defaults to `5`):
            Timings of each, alternating; medians are compared.

    Returns:
        `int`. PyTorch's own setting is as before.
    """
    before = torch.get_num_threads()
    left, right = torch.randn(640, 576), torch.randn(576, 1536)
    timings = {1: [], before: []}
    for _ in range(repeats):
        for threads, times in timings.items():
            torch.set_num_threads(threads)
            left @ right  # the first product after a change wakes the threads
            start = time.perf_counter()
            for _ in range(30):
                left @ right
            times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return min(timings, key=lambda threads: statistics.median(timings[threads]))
