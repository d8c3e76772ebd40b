"""Amounts of work of the quickstart, and how they shrink to fit a time budget."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class Sizes:
    """
    Amounts of work. The number of completions per question and γ are the paper's and never shrink.

    Args:
        demonstrations (`int`, *optional*, defaults to `72`):
            Questions that π_SFT is trained on.
        demonstration_epochs (`int`, *optional*, defaults to `2`):
            Epochs of the supervised fine-tuning.
        preference_questions (`int`, *optional*, defaults to `107`):
            Questions of the human preferences D.
        unlabeled_questions (`int`, *optional*, defaults to `105`):
            Questions of U.
        heldout_questions (`int`, *optional*, defaults to `74`):
            Questions that no model is trained on.
        num_generations (`int`, *optional*, defaults to `10`):
            Completions per question (n in the paper).
        evaluation_generations (`int`, *optional*, defaults to `4`):
            Completions per question when a policy is evaluated.
        reward_epochs (`int`, *optional*, defaults to `3`):
            Epochs of each reward model.
        policy_rollouts (`int`, *optional*, defaults to `6`):
            PPO rollouts of each policy.
        completions_per_rollout (`int`, *optional*, defaults to `32`):
            Completions of a rollout, each for a different question. Must be even.
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


MINIMUM_SIZES = {
    "preference_questions": 24,
    "unlabeled_questions": 32,  # one rollout
    "heldout_questions": 16,
    "policy_rollouts": 2,
}
"""Sizes that the time budget may shrink, with their minimum."""

PAIRS_PER_QUESTION = 1.3
"""Approximate number of pairs of D per question. Some questions have only right or only wrong completions."""

SYNTHETIC_SHARE = 0.6
"""Approximate number of synthetic pairs per question of U."""

SECONDS = {
    "demonstration": 0.07,
    "sampled completion": 0.026,
    "trained pair": 0.14,
    "policy completion": 0.34,
    "scored text": 0.04,
    "stage": 4.0,
    "start": 8.0,
}
"""
Measured wall time of one unit of work on two free cores. `stage` is the time to load and save the models of a stage.
`start` is the time of the first imports.
"""


def estimate_demonstration_seconds(sizes: Sizes) -> float:
    """
    Estimates the time of the supervised fine-tuning on two free cores.

    Args:
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `float`: Time in seconds.
    """
    trained = sizes.demonstrations * sizes.demonstration_epochs
    return SECONDS["start"] + SECONDS["stage"] + SECONDS["demonstration"] * trained


def estimate_preference_seconds(sizes: Sizes) -> float:
    """
    Estimates the time to sample completions for the simulated preferences on two free cores.

    Args:
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `float`: Time in seconds.
    """
    completions = sizes.num_generations * (sizes.preference_questions + sizes.heldout_questions)
    return SECONDS["stage"] + SECONDS["sampled completion"] * completions


def estimate_algorithm_seconds(sizes: Sizes) -> float:
    """
    Estimates the time of Algorithm 1 and its evaluation on two free cores.

    Args:
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `float`: Time in seconds.
    """
    human = PAIRS_PER_QUESTION * sizes.preference_questions
    synthetic = SYNTHETIC_SHARE * sizes.unlabeled_questions
    heldout = PAIRS_PER_QUESTION * sizes.heldout_questions
    completions = (
        sizes.num_generations * sizes.unlabeled_questions + 3 * sizes.evaluation_generations * sizes.heldout_questions
    )
    scored = 3 * sizes.unlabeled_questions + 2 * 2 * (2.5 * heldout + 0.7 * sizes.unlabeled_questions + synthetic)
    return (
        8 * SECONDS["stage"]
        + SECONDS["trained pair"] * sizes.reward_epochs * (2 * human + synthetic)
        + SECONDS["policy completion"] * 2 * sizes.policy_rollouts * sizes.completions_per_rollout
        + SECONDS["sampled completion"] * completions
        + SECONDS["scored text"] * scored
    )


def shrink_sizes(sizes: Sizes, share: float) -> Sizes:
    """
    Shrinks the sizes in [`MINIMUM_SIZES`] to a share of the work.

    Args:
        sizes ([`Sizes`]):
            Full amounts of work.
        share (`float`):
            Share to keep, in [0, 1]. No size falls below its minimum, and none grows.

    Returns:
        [`Sizes`]: The smaller amounts of work.
    """
    values = {entry.name: vars(sizes)[entry.name] for entry in fields(sizes) if entry.name in MINIMUM_SIZES}
    return replace(
        sizes, **{name: min(value, max(MINIMUM_SIZES[name], round(share * value))) for name, value in values.items()}
    )


def fit_sizes(
    sizes: Sizes, seconds_left: float, slowdown: float, estimate_seconds: Callable[[Sizes], float]
) -> tuple[Sizes, float]:
    """
    Finds the largest share of the work that fits the remaining time.

    Args:
        sizes ([`Sizes`]):
            Full amounts of work.
        seconds_left (`float`):
            Wall time until the end of the budget.
        slowdown (`float`):
            Time on this machine so far, divided by the time on two free cores.
        estimate_seconds (`Callable[[Sizes], float]`):
            Estimates the time of the remaining work on two free cores, in seconds.

    Returns:
        `tuple[Sizes, float]`: The sizes, and the share in [0.05, 1]. If nothing fits, the smallest share.
    """
    share = 1.0
    while share > 0.05 and slowdown * estimate_seconds(shrink_sizes(sizes, share)) > seconds_left:
        share = round(share - 0.05, 2)
    return shrink_sizes(sizes, share), share


def find_fastest_threads(repeats: int = 5) -> int:
    """
    Finds the number of threads that multiplies matrices fastest: PyTorch's current number, or one.

    On a busy machine, two threads wait for each other and are slower than one.

    Args:
        repeats (`int`, *optional*, defaults to `5`):
            Number of timings for each setting. The timings alternate, and their medians are compared.

    Returns:
        `int`: Number of threads. PyTorch's own setting is unchanged.
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
