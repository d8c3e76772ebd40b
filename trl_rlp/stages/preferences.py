"""Step 4 of Algorithm 1: makes synthetic preferences from groups of completions."""

from pathlib import Path
from typing import Any

from trl_rlp.data.argument_names import rename_arguments
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.storage.artifacts import load_data, load_reward_model, save_data
from trl_rlp.storage.run_folder import SHARDS
from trl_rlp.trainer.reward.refinement_data import FIELD_NAMES
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


SETTING_NAMES = {
    **FIELD_NAMES,
    "threshold": "`confidence_threshold` in `reward_args` (`rlp_reward_args` of a PPO trainer)",
    "max_new_tokens": "`max_new_tokens` (`response_length` of a PPO trainer)",
}
"""What users of a run set instead of arguments of the functions that make groups, anchors and pairs."""


def make_synthetic_preferences(
    folder: Path,
    groups: Path,
    reward_model: str | Path,
    config: RLPRewardConfig,
    seed: int,
    model_options: dict[str, Any] | None = None,
) -> dict[str, int]:
    """
    Makes D̂ from groups of completions and the frozen reward model r_φ. An interrupted call resumes from the shards.

    Args:
        folder (`Path`):
            Folder for the shards and for `data`: D̂ in TRL's preference format, with its audit columns.
        groups (`Path`):
            Folder of [`group_samples`].
        reward_model (`str` or `Path`):
            Folder or Hub name of the reward model r_φ, which chooses y_w.
        config ([`RLPRewardConfig`]):
            Provides `confidence_threshold`, `chosen`, `redraw_rejected` and `max_length`.
        seed (`int`):
            Seed of the choice of y_l.
        model_options (`dict`, *optional*):
            Further arguments of [`load_reward_model`].

    Returns:
        `dict[str, int]`: Number of accepted prompts, and number of rejected ones by reason.

    Raises:
        ValueError: For the reasons of [`synthesize_preferences`]. The message names settings of the run.
    """
    model, processing_class = load_reward_model(reward_model, **(model_options or {}))
    with rename_arguments(SETTING_NAMES):
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
            output_dir=str(folder / SHARDS),
        )
    save_data(synthetic, folder)
    return {"accepted": len(synthetic), **counts}
