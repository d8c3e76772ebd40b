"""All numbers of the laboratory. Those of `LABORATORY` were frozen before the seeds that are reported were run."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """
    What a run depends on besides its seed.

    Args:
        demonstrations (`int`), sft_epochs (`int`), sft_learning_rate (`float`):
            Of π_SFT.
        human_pairs (`int`):
            D, of which `flipped` are labeled wrongly.
        flipped (`float`):
            Share, in [0, 1].
        reward_epochs (`int`), reward_learning_rate (`float`):
            Of every reward model.
        copies (`int`):
            How often each of the 120 training prompts stands in U.
        num_generations (`int`):
            n.
        rollouts (`int`), rollout_size (`int`), learning_rate (`float`):
            Of every policy: PPO rollouts of so many completions.
        kl_coef (`float`):
            β of the tables.
        sweep (`tuple[float, ...]`):
            β of the sweep.
        best_of (`int`):
            n of best-of-n, from `best_of_samples` samples a prompt.
        evaluation_samples (`int`):
            Outputs of each of the 80 evaluation prompts, at temperature 0.7.
        noise (`float`):
            Share of wrong answers of the equivalence in the control.
    """

    demonstrations: int = 4000
    sft_epochs: int = 15
    sft_learning_rate: float = 3e-3
    human_pairs: int = 500
    flipped: float = 0.25
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
    evaluation_samples: int = 8
    noise: float = 0.15


LABORATORY = Settings()
SMOKE = replace(
    LABORATORY,
    demonstrations=2000,
    sft_epochs=4,
    human_pairs=60,
    reward_epochs=1,
    copies=1,
    num_generations=6,
    rollouts=2,
    rollout_size=16,
    sweep=(0.1, 0.4),
    best_of=2,
    best_of_samples=4,
    evaluation_samples=1,
)
SETTINGS = {"laboratory": LABORATORY, "smoke": SMOKE}
