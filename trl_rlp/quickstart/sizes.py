"""Amounts of work of the quickstart, their estimated time, and how they shrink to fit a time budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


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
        evaluation_questions (`int`, *optional*, defaults to `74`):
            Held-out questions that the policies are evaluated on, at most `heldout_questions`.
        num_generations (`int`, *optional*, defaults to `10`):
            Completions per question (n in the paper).
        evaluation_generations (`int`, *optional*, defaults to `4`):
            Completions per question when a policy is evaluated.
        reward_epochs (`int`, *optional*, defaults to `3`):
            Epochs of each reward model.
        policy_rollouts (`int`, *optional*, defaults to `12`):
            PPO rollouts of the policy π.
        retrained_policy_rollouts (`int`, *optional*, defaults to `12`):
            PPO rollouts of the retrained policy π̂, at most `policy_rollouts`.
        completions_per_rollout (`int`, *optional*, defaults to `32`):
            Completions of a rollout, each for a different question. Must be even.
    """

    demonstrations: int = 72
    demonstration_epochs: int = 2
    preference_questions: int = 107
    unlabeled_questions: int = 105
    heldout_questions: int = 74
    evaluation_questions: int = 74
    num_generations: int = 10
    evaluation_generations: int = 4
    reward_epochs: int = 3
    policy_rollouts: int = 12
    retrained_policy_rollouts: int = 12
    completions_per_rollout: int = 32


MINIMUM_SIZES = {
    "preference_questions": 24,
    "unlabeled_questions": 32,  # one rollout
    "heldout_questions": 16,
    "evaluation_questions": 16,
    "policy_rollouts": 2,
    "retrained_policy_rollouts": 2,
}
"""Sizes that the time budget may shrink, with their minimum."""

OPEN_SIZES = {
    "preferences": tuple(MINIMUM_SIZES),
    "reward_model": (
        "unlabeled_questions",
        "policy_rollouts",
        "retrained_policy_rollouts",
        "evaluation_questions",
    ),
    "policy": ("policy_rollouts", "retrained_policy_rollouts", "evaluation_questions"),
    "retrained_policy": ("retrained_policy_rollouts", "evaluation_questions"),
    "outcome": ("evaluation_questions",),
}
"""Stages that are planned, with the sizes that can still shrink when the stage starts."""

LIMITS = {"evaluation_questions": "heldout_questions", "retrained_policy_rollouts": "policy_rollouts"}
"""Sizes that another size limits."""

PAIRS_PER_QUESTION = 1.3
"""Approximate number of pairs of D per question. Some questions have only right or only wrong completions."""

SYNTHETIC_SHARE = 0.6
"""Approximate number of synthetic pairs per question of U."""

POLICY_PAIR_SHARE = 0.7
"""Approximate number of policy pairs with a known right side per question."""

SECONDS = {
    "demonstration": 0.085,
    "sampled completion": 0.0165,
    "trained pair": 0.083,
    "policy completion": 0.31,
    "evaluated completion": 0.034,
    "scored text": 0.022,
    "stage": 2.0,
}
"""
Measured wall time of one unit of work on two free cores. `stage` is the time to load and save the models of a stage.
An evaluated completion is sampled, and its log-probabilities are computed with two models.
"""


def _policy_seconds(rollouts: int, sizes: Sizes) -> float:
    return SECONDS["stage"] + SECONDS["policy completion"] * rollouts * sizes.completions_per_rollout


def _reward_model_seconds(pairs: float, sizes: Sizes) -> float:
    return SECONDS["stage"] + SECONDS["trained pair"] * sizes.reward_epochs * pairs


def _scoring_seconds(pairs: float) -> float:
    """Two reward models score both sides of each pair."""
    return SECONDS["scored text"] * 2 * 2 * pairs


def _human_pairs(questions: int) -> float:
    return PAIRS_PER_QUESTION * questions


def _synthetic_pairs(sizes: Sizes) -> float:
    return SYNTHETIC_SHARE * sizes.unlabeled_questions


ESTIMATES: dict[str, Callable[[Sizes], float]] = {
    "sft": lambda sizes: (
        SECONDS["stage"] + SECONDS["demonstration"] * sizes.demonstrations * sizes.demonstration_epochs
    ),
    "preferences": lambda sizes: (
        SECONDS["stage"]
        + SECONDS["sampled completion"]
        * sizes.num_generations
        * (sizes.preference_questions + sizes.heldout_questions)
    ),
    "reward_model": lambda sizes: _reward_model_seconds(_human_pairs(sizes.preference_questions), sizes),
    "policy": lambda sizes: _policy_seconds(sizes.policy_rollouts, sizes),
    "policy_samples": lambda sizes: (
        SECONDS["stage"] + SECONDS["sampled completion"] * sizes.num_generations * sizes.unlabeled_questions
    ),
    "synthetic_preferences": lambda sizes: SECONDS["stage"] + SECONDS["scored text"] * sizes.unlabeled_questions,
    "refined_reward_model": lambda sizes: _reward_model_seconds(
        _human_pairs(sizes.preference_questions) + _synthetic_pairs(sizes), sizes
    ),
    "gate": lambda sizes: (
        SECONDS["stage"]
        + _scoring_seconds(
            _human_pairs(sizes.heldout_questions)
            + POLICY_PAIR_SHARE * sizes.unlabeled_questions
            + _synthetic_pairs(sizes)
        )
    ),
    "retrained_policy": lambda sizes: _policy_seconds(sizes.retrained_policy_rollouts, sizes),
    "outcome": lambda sizes: (
        3 * SECONDS["stage"]
        + SECONDS["evaluated completion"] * 3 * sizes.evaluation_generations * sizes.evaluation_questions
        + _scoring_seconds(_human_pairs(sizes.heldout_questions) + POLICY_PAIR_SHARE * sizes.evaluation_questions)
    ),
}
"""The estimated seconds of each stage on two free cores, in the order of the stages."""


def estimate_remaining_seconds(stage: str, sizes: Sizes) -> float:
    """
    Estimates the time of a stage and all stages after it on two free cores.

    Args:
        stage (`str`):
            A key of [`ESTIMATES`].
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `float`: Time in seconds.
    """
    stages = list(ESTIMATES)
    return sum(ESTIMATES[name](sizes) for name in stages[stages.index(stage) :])


def shrink_sizes(sizes: Sizes, share: float, names: Sequence[str] = tuple(MINIMUM_SIZES)) -> Sizes:
    """
    Shrinks sizes to a share of the work.

    Args:
        sizes ([`Sizes`]):
            Full amounts of work.
        share (`float`):
            Share to keep, in [0, 1]. No size falls below its minimum, and none grows.
        names (`Sequence[str]`, *optional*):
            Sizes that shrink. Defaults to all in [`MINIMUM_SIZES`].

    Returns:
        [`Sizes`]: The smaller amounts of work.
    """
    values = {name: vars(sizes)[name] for name in names}
    smaller = replace(
        sizes, **{name: min(value, max(MINIMUM_SIZES[name], round(share * value))) for name, value in values.items()}
    )
    return replace(smaller, **{name: min(vars(smaller)[name], vars(smaller)[limit]) for name, limit in LIMITS.items()})


def fit_sizes(stage: str, sizes: Sizes, seconds_left: float, slowdown: float) -> Sizes:
    """
    Shrinks the open sizes of a stage to the largest share that fits the remaining time.

    The rollouts of π̂ shrink below those of π only if nothing else helps, because the two policies are compared.

    Args:
        stage (`str`):
            The next stage, a key of [`OPEN_SIZES`]. Only its open sizes shrink.
        sizes ([`Sizes`]):
            Full amounts of work.
        seconds_left (`float`):
            Wall time until the end of the budget.
        slowdown (`float`):
            Time on this machine so far, divided by the time on two free cores.

    Returns:
        [`Sizes`]: The sizes. If nothing fits, the open sizes have their minimum.
    """
    last_resort = {"retrained_policy_rollouts"} & set(OPEN_SIZES[stage])
    for names in (set(OPEN_SIZES[stage]) - last_resort, last_resort):
        full = sizes
        for percent in range(100, -1, -5):
            sizes = shrink_sizes(full, percent / 100, sorted(names))
            if slowdown * estimate_remaining_seconds(stage, sizes) <= seconds_left:
                return sizes
    return sizes
