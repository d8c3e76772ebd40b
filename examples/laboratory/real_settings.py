"""The numbers of the experiment with policies on a real model. Each set was fixed before its reported seeds ran."""

from dataclasses import dataclass, field, replace


EXPLORED_SEEDS = frozenset({90, 91})
"""Seeds on which the settings were chosen. They are never reported."""


@dataclass(frozen=True)
class RealSettings:
    """
    Settings of a run, without the seed.

    Args:
        sizes (`dict[str, int]`):
            Number of questions of each part, at most. The held-out questions are those that are left, and some seeds
            have fewer.
        reward_epochs (`float`):
            Epochs of every reward model.
        num_generations (`int`):
            Number n of completions per prompt in the samples that are grouped.
        kl_coefs (`tuple[float, ...]`):
            β of the policies. Rewards have standard deviation 1 on samples of π_SFT.
        rollouts (`int`), rollout_size (`int`), rollout_generations (`int`):
            Training of a policy: number of rollouts, completions per rollout, and completions per prompt in a rollout.
        learning_rate (`float`), value_warmup_rollouts (`int`):
            Training of a policy: learning rate, and rollouts at the start that train only the critic of PPO.
        anchor_weight (`float`):
            Weight c of the anchor reward.
        refine_every (`int`):
            Number of rollouts between two refinements in the loop.
        best_of (`int`):
            Number n of completions per prompt that majority-then-reward selects from.
        picks_epochs (`float`), picks_learning_rate (`float`), dpo_beta (`float`):
            Training of the policies on the picks: SFT on picks, or DPO on pairs of a pick and another completion.
        evaluation_generations (`int`):
            Completions of each question when a policy is evaluated, at temperature 0.7.
        kl_questions (`int`):
            Number of questions for the KL divergence from π_SFT.
        window (`int`):
            Number of rollouts in a window of the tables.
    """

    sizes: dict[str, int] = field(
        default_factory=lambda: {"demonstrations": 72, "preferences": 107, "unlabeled": 105, "heldout": 74}
    )
    reward_epochs: float = 3
    num_generations: int = 10
    kl_coefs: tuple[float, ...] = (0.02, 0.1, 0.4)
    rollouts: int = 15
    rollout_size: int = 32
    rollout_generations: int = 4
    learning_rate: float = 4e-4
    value_warmup_rollouts: int = 2
    anchor_weight: float = 3.0
    refine_every: int = 5
    best_of: int = 16
    picks_epochs: float = 3
    picks_learning_rate: float = 1e-3
    dpo_beta: float = 0.1
    evaluation_generations: int = 4
    kl_questions: int = 24
    window: int = 5


SMOLLM2 = RealSettings()
SMOLLM2_LONG = replace(SMOLLM2, kl_coefs=(0.02,), rollouts=60, refine_every=20, window=20)
"""
Four times the rollouts at the smallest β. Refinements come after the same shares of them. Chosen after seeds 400 and
401 of `SMOLLM2`, and before any run with these settings.
"""
SMOKE = replace(
    SMOLLM2,
    sizes={"demonstrations": 4, "preferences": 12, "unlabeled": 8, "heldout": 4},
    reward_epochs=1,
    num_generations=4,
    kl_coefs=(0.02,),
    rollouts=2,
    rollout_size=8,
    learning_rate=1e-2,
    value_warmup_rollouts=0,
    refine_every=1,
    best_of=4,
    picks_epochs=1,
    picks_learning_rate=1e-2,
    evaluation_generations=2,
    kl_questions=2,
    window=1,
)
SETTINGS = {"smollm2": SMOLLM2, "smollm2_long": SMOLLM2_LONG, "smoke": SMOKE}
