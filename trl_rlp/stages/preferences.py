"""Step 4 of Algorithm 1: synthetic preferences from groups of outputs."""

from pathlib import Path

from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.storage.artifacts import load_data, load_reward_model, save_data
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


def make_synthetic_preferences(
    folder: Path, groups: Path, reward_model: str | Path, config: RLPRewardConfig, seed: int
) -> dict[str, int]:
    """
    Step 4 of Algorithm 1: makes D̂ from groups of outputs and the frozen r_φ.

    Args:
        folder (`Path`):
            Where `data` goes: D̂ in TRL's preference format, with its audit columns.
        groups (`Path`):
            Folder of [`group_samples`].
        reward_model (`str` or `Path`):
            r_φ, which picks y_w.
        config ([`RLPRewardConfig`]):
            γ, how y_w is picked, whether y_l is drawn anew each epoch, and how long a text the model reads.
        seed (`int`):
            Seed of y_l.

    Returns:
        `dict[str, int]`: how many instructions were accepted, and how many rejected for which reason.
    """
    model, processing_class = load_reward_model(reward_model)
    synthetic, counts = synthesize_preferences(
        load_data(groups),
        "spg",
        reward_model=model,
        reward_processing_class=processing_class,
        threshold=config.confidence_threshold,
        chosen=config.chosen,
        keep_candidates=config.redraw_rejected,
        max_length=config.max_length,
        seed=seed,
    )
    save_data(synthetic, folder)
    return {"accepted": len(synthetic), **counts}
