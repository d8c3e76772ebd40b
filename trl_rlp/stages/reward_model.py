"""Steps 2 and 4 of Algorithm 1: training a reward model, which leaves a plain model in a folder."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from trl_rlp.trainer.checkpoints import CHECKPOINTS, train_to_end
from trl_rlp.trainer.reward.initial_model import init_reward_model
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


def train_reward_model(
    folder: Path,
    base_model: str | Path,
    preference_dataset: Dataset,
    args: dict[str, Any],
    peft_config: LoraConfig | None = None,
    **refinement: Any,
) -> dict[str, float]:
    """
    Steps 2 and 4 of Algorithm 1: trains r_φ on D, or, with `refinement`, r̂_φ by Eq. 1.

    Args:
        folder (`Path`):
            Where the plain sequence classifier goes. Checkpoints found here are resumed from.
        base_model (`str` or `Path`):
            The SFT model that reward learning starts from.
        preference_dataset (`datasets.Dataset`):
            D, in TRL's preference format.
        args (`dict`):
            Fields of [`RLPRewardConfig`] but `output_dir`; `method` says whether
            r_φ (`"none"`) or r̂_φ is trained.
        peft_config (`LoraConfig`, *optional*):
            Trains an adapter, which is merged before saving.
        refinement:
            Further arguments of [`RLPRewardTrainer`]: `policy_samples`,
            `synthetic_dataset` and so on.

    Returns:
        `dict[str, float]`: the last value of each logged metric.
    """
    config = RLPRewardConfig(**args, output_dir=str(folder / CHECKPOINTS))
    kwargs = config.model_init_kwargs if isinstance(config.model_init_kwargs, dict) else None
    config.model_init_kwargs = None
    model, processing_class = init_reward_model(base_model, config.seed, kwargs)
    trainer = RLPRewardTrainer(
        model=model,
        args=config,
        train_dataset=preference_dataset,
        processing_class=processing_class,
        peft_config=peft_config,
        **refinement,
    )
    return train_to_end(trainer, folder)
