"""What PPO carries from rollout to rollout besides weights, and where it is kept in a checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from trl_rlp.losses.kl import next_kl_coef
from trl_rlp.losses.ppo import pooled_mean_and_variance
from trl_rlp.storage.run_folder import read_json, write_json
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


STATE_FILE = "ppo_state.json"
MOST_BAD_STEPS = 3


@dataclass
class PPOState:
    """
    The same on every process.

    Args:
        kl_coef (`float`):
            Weight of the KL divergence in the reward, where an adaptive one has come to.
        rollouts (`int`, *optional*, defaults to `0`):
            Rollouts begun.
        score_count, score_mean, score_squares (`float`, *optional*, defaults to `0.0`):
            Count, mean and sum of squared deviations of all scores so far.
        skipped_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps that were left out because something was not finite.
        bad_in_a_row (`int`, *optional*, defaults to `0`):
            How many of them came one after the other, a bad rollout counting once.
        steps_per_rollout (`int`, *optional*, defaults to `0`):
            Optimizer steps of each rollout.
    """

    kl_coef: float
    rollouts: int = 0
    score_count: float = 0.0
    score_mean: float = 0.0
    score_squares: float = 0.0
    skipped_steps: int = 0
    bad_in_a_row: int = 0
    steps_per_rollout: int = 0

    def adapt_kl_coef(self, kl: float, args: RLPPPOConfig) -> None:
        """
        Moves an adaptive `kl_coef` after a rollout.

        Args:
            kl (`float`):
                Mean KL divergence of its completions, in nats.
            args ([`RLPPPOConfig`]):
                Settings of the run.
        """
        if args.adaptive_kl:
            self.kl_coef = next_kl_coef(self.kl_coef, kl, args.kl_target, args.kl_horizon, args.batch_size)

    def add_scores(self, moments: torch.Tensor) -> float:
        """
        Takes the scores of a rollout into account.

        Args:
            moments (`torch.Tensor` of shape `(processes, 3)`):
                [`masked_moments`] of each process.

        Returns:
            `float`: the standard deviation of all scores so far, 1 if they are all equal or there are none.
        """
        if self.score_count + float(moments[:, 0].sum()) == 0:
            return 1.0
        past = torch.tensor([self.score_count, self.score_mean, self.score_squares], dtype=torch.float64)
        moments = torch.cat([past[None], moments.double().cpu()])  # (processes + 1, 3)
        mean, variance = pooled_mean_and_variance(moments, unbiased=False)
        self.score_count = float(moments[:, 0].sum())
        self.score_mean, self.score_squares = float(mean), float(variance) * self.score_count
        return float(variance) ** 0.5 or 1.0

    def save(self, folder: Path) -> None:
        """
        Writes it into a checkpoint.

        Args:
            folder (`Path`):
                The checkpoint.
        """
        write_json(folder / STATE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> "PPOState":
        """
        Reads it from a checkpoint.

        Args:
            folder (`str` or `Path`):
                The checkpoint.

        Returns:
            [`PPOState`].

        Raises:
            ValueError: if the folder holds none.
        """
        path = Path(folder) / STATE_FILE
        if not path.is_file():
            raise ValueError(
                f"`resume_from_checkpoint`={str(folder)!r} holds no {STATE_FILE}, so it was not written by this "
                "trainer. Pass the folder as `model` to start from its weights instead."
            )
        return cls(**read_json(path))
