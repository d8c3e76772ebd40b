"""Steps 2 and 4 of Algorithm 1: trains a reward model and saves it as a plain model."""

import copy
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from trl_rlp.storage.run_folder import CHECKPOINTS
from trl_rlp.trainer.checkpoints import train_to_end
from trl_rlp.trainer.reward.initial_model import init_reward_model
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


def build_reward_trainer(
    base_model: str | Path, config: RLPRewardConfig, preference_dataset: Dataset, **arguments: Any
) -> RLPRewardTrainer:
    """
    Builds the trainer of a reward model that starts from the SFT model with a new score head.

    Args:
        base_model (`str` or `Path`):
            Folder or Hub name of the SFT model.
        config ([`RLPRewardConfig`]):
            Configuration of the run. `model_init_kwargs` and `trust_remote_code` are options for loading the model.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D in TRL's preference format.
        arguments:
            Other arguments of [`RLPRewardTrainer`].

    Returns:
        [`RLPRewardTrainer`]: The trainer.
    """
    options = {"trust_remote_code": config.trust_remote_code, **(config.model_init_kwargs or {})}
    model, processing_class = init_reward_model(base_model, config.seed, options)
    args = copy.copy(config)
    args.model_init_kwargs = None  # TRL accepts them only with the name of a model
    return RLPRewardTrainer(
        model=model, args=args, train_dataset=preference_dataset, processing_class=processing_class, **arguments
    )


def train_reward_model(
    folder: Path,
    base_model: str | Path,
    preference_dataset: Dataset,
    args: dict[str, Any],
    peft_config: LoraConfig | None = None,
    **refinement: Any,
) -> dict[str, float]:
    """
    Trains the reward model r_φ on D, or with `refinement` the refined reward model r̂_φ (Eq. 1).

    Args:
        folder (`Path`):
            Folder for the plain sequence classifier. Training resumes from the last checkpoint in it.
        base_model (`str` or `Path`):
            Folder or Hub name of the SFT model that reward learning starts from.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D in TRL's preference format.
        args (`dict`):
            Fields of [`RLPRewardConfig`] except `output_dir`. `method` is `"none"` for r_φ, and any other method for
            r̂_φ.
        peft_config (`LoraConfig`, *optional*):
            Configuration of an adapter to train. The adapter is merged into the model before saving.
        refinement:
            Other arguments of [`RLPRewardTrainer`], such as `policy_samples` and `synthetic_dataset`.

    Returns:
        `dict[str, float]`: The last value of each logged metric.
    """
    config = RLPRewardConfig(**args, output_dir=str(folder / CHECKPOINTS))
    trainer = build_reward_trainer(base_model, config, preference_dataset, peft_config=peft_config, **refinement)
    return train_to_end(trainer, folder)
