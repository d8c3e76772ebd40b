"""All numbers of the laboratory. The values of `LABORATORY` were fixed before the reported seeds were run."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """
    Settings of a run, without the seed.

    Args:
        demonstrations (`int`):
            Number of demonstrations for π_SFT.
        sft_epochs (`int`), sft_learning_rate (`float`):
            Training of π_SFT.
        human_pairs (`int`):
            Number of human preference pairs in D.
        flipped (`float`):
            Share of the pairs of D with a flipped label, in [0, 1].
        heldout_pairs (`int`):
            Number of human pairs outside D, for the gate of refinements in the loop.
        reward_epochs (`int`), reward_learning_rate (`float`):
            Training of every reward model.
        copies (`int`):
            How often U repeats each of the 120 training prompts.
        num_generations (`int`):
            Number n of completions per prompt in P.
        rollouts (`int`), rollout_size (`int`), learning_rate (`float`):
            Training of every policy: number of PPO rollouts, and completions per rollout.
        kl_coef (`float`):
            β of all tables except the sweep.
        sweep (`tuple[float, ...]`):
            β values of the sweep.
        best_of (`int`):
            Number n of best-of-n, and of the samples per prompt that majority-then-reward picks from.
        best_of_samples (`int`):
            Number of samples per prompt for the estimate of best-of-n.
        taught_copies (`int`):
            How often majority-then-reward samples each of the 120 training prompts. Each time has its own pick.
        taught_sft_epochs (`float`), taught_sft_learning_rate (`float`):
            Training of a policy on picks.
        taught_dpo_epochs (`float`), taught_dpo_learning_rate (`float`):
            Training of a policy on pairs of a pick and another completion.
        evaluation_samples (`int`):
            Completions of each of the 80 evaluation prompts, at temperature 0.7.
        noise (`float`):
            Share of wrong verdicts of the equivalence in the control with noise, in [0, 1].
    """

    demonstrations: int = 4000
    sft_epochs: int = 15
    sft_learning_rate: float = 3e-3
    human_pairs: int = 500
    flipped: float = 0.25
    heldout_pairs: int = 200
    reward_epochs: int = 4
    reward_learning_rate: float = 1e-3
    copies: int = 2
    num_generations: int = 10
    rollouts: int = 40
    rollout_size: int = 128
    learning_rate: float = 3e-4
    kl_coef: float = 0.4
    sweep: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    best_of: int = 16
    best_of_samples: int = 64
    taught_copies: int = 8
    taught_sft_epochs: float = 3
    taught_sft_learning_rate: float = 1e-3
    taught_dpo_epochs: float = 3
    taught_dpo_learning_rate: float = 1e-3
    evaluation_samples: int = 8
    noise: float = 0.15


EXPLORED_SEEDS: dict[str, frozenset[int]] = {
    "paper": frozenset({100, 101}),
    "ours": frozenset({*range(20), 100, 101, *range(200, 225), 230, 231, *range(300, 304), *range(310, 326)}),
}
"""Seeds on which settings of a part were chosen, or that an earlier experiment used. They are never reported."""

LABORATORY = Settings()
SMOKE = replace(
    LABORATORY,
    demonstrations=2000,
    sft_epochs=4,
    human_pairs=60,
    heldout_pairs=20,
    reward_epochs=1,
    copies=1,
    num_generations=6,
    rollouts=2,
    rollout_size=16,
    sweep=(0.1, 0.4),
    best_of=2,
    best_of_samples=4,
    taught_copies=1,
    taught_sft_epochs=1,
    taught_dpo_epochs=1,
    evaluation_samples=1,
)
SETTINGS = {"laboratory": LABORATORY, "smoke": SMOKE}
