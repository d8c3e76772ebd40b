"""The training steps of Algorithm 1: each writes a plain model to a folder and returns its figures."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from trl_rlp.data.sampling import end_token_ids, sample_completions
from trl_rlp.data.scoring import score
from trl_rlp.trainer.artifacts import (
    initial_reward_model,
    load_policy,
    load_reward_model,
    save_plain,
)
from trl_rlp.trainer.precision import supported_precision
from trl_rlp.trainer.reward_function import RewardFunction
from trl_rlp.trainer.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.rlp_reward_trainer import RLPRewardTrainer


POLICY_TRAINERS = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}
CHECKPOINTS = "checkpoints"
NUM_STANDARDISATION_PROMPTS = 256


def _final_figures(trainer: Trainer) -> dict[str, float]:
    """The last logged value of everything the trainer logged."""
    figures = {}
    for entry in trainer.state.log_history:
        figures |= {key: value for key, value in entry.items() if isinstance(value, (int, float))}
    return figures


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
            Fields of [`~trl_rlp.trainer.rlp_reward_config.RLPRewardConfig`] but `output_dir`; `method` says whether
            r_φ (`"none"`) or r̂_φ is trained.
        peft_config (`LoraConfig`, *optional*):
            Trains an adapter, which is merged before saving.
        refinement:
            Further arguments of [`~trl_rlp.trainer.rlp_reward_trainer.RLPRewardTrainer`]: `policy_samples`,
            `synthetic_dataset` and so on.

    Returns:
        `dict[str, float]`: the last value of each logged metric.
    """
    config = RLPRewardConfig(**args, output_dir=str(folder / CHECKPOINTS))
    kwargs = config.model_init_kwargs if isinstance(config.model_init_kwargs, dict) else None
    config.model_init_kwargs = None
    model, processing_class = initial_reward_model(base_model, config.seed, kwargs)
    trainer = RLPRewardTrainer(
        model=model,
        args=config,
        train_dataset=preference_dataset,
        processing_class=processing_class,
        peft_config=peft_config,
        **refinement,
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    save_plain(trainer, folder)
    return _final_figures(trainer)


def _last_checkpoint(folder: Path) -> str | None:
    checkpoints = folder / CHECKPOINTS
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def standardisation(
    reward_model: str | Path,
    sft_model: str | Path,
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
) -> dict[str, float]:
    """
    Gives mean and deviation of a reward model on fixed outputs of π_SFT.

    r_φ and r̂_φ differ in scale, so an equal β is not an equal KL pressure; standardised on the same outputs they are
    comparable. Off by default: the paper says nothing of it.

    Args:
        reward_model (`str` or `Path`):
            Folder or Hub name.
        sft_model (`str` or `Path`):
            π_SFT.
        prompt_dataset (`datasets.Dataset`):
            U; the first 256 prompts are used.
        sampling (`dict`):
            Further arguments of [`~trl_rlp.data.sampling.sample_completions`]; the same seed gives the same outputs.

    Returns:
        `dict[str, float]`: `mean` and `deviation`, for [`~trl_rlp.trainer.reward_function.RewardFunction`].
    """
    prompts = prompt_dataset.select(range(min(len(prompt_dataset), NUM_STANDARDISATION_PROMPTS)))
    samples = sample_completions(prompts.select_columns(["prompt"]), *load_policy(sft_model), **sampling)
    size = len(samples[0]["completions"])
    rewards = score(
        *load_reward_model(reward_model),
        [prompt for prompt in samples["prompt"] for _ in range(size)],
        [completion for row in samples["completions"] for completion in row],
        [flag for row in samples["finished"] for flag in row],
    )
    return {"mean": float(np.mean(rewards)), "deviation": float(np.std(rewards))}


def train_policy(
    folder: Path,
    sft_model: str | Path,
    reward_model: str | Path,
    prompt_dataset: Dataset,
    args: dict[str, Any],
    policy_trainer: str = "rloo",
    peft_config: LoraConfig | None = None,
    standardise_with: dict[str, Any] | None = None,
) -> dict[str, float]:
    """
    Steps 3 and 5 of Algorithm 1: maximises E[r(x, y) - β KL(π ‖ π_SFT)] from π_SFT.

    Args:
        folder (`Path`):
            Where the plain causal LM goes. Checkpoints found here are resumed from.
        sft_model (`str` or `Path`):
            π_SFT: where training starts and what KL is measured to.
        reward_model (`str` or `Path`):
            r_φ or r̂_φ.
        prompt_dataset (`datasets.Dataset`):
            U: a `prompt` column.
        args (`dict`):
            Fields of the trainer's config but `output_dir`; β is `beta`.
        policy_trainer (`str`, *optional*, defaults to `"rloo"`):
            `"rloo"` or `"grpo"`. The paper uses PPO.
        peft_config (`LoraConfig`, *optional*):
            Trains an adapter, which is merged before saving.
        standardise_with (`dict`, *optional*):
            Arguments of `sample_completions` for [`standardisation`]; `None` leaves the rewards as they are.

    Returns:
        `dict[str, float]`: the last value of each logged metric.

    Raises:
        ValueError: if `policy_trainer` is unknown.
    """
    if policy_trainer not in POLICY_TRAINERS:
        raise ValueError(f"`policy_trainer` must be one of {sorted(POLICY_TRAINERS)}, got {policy_trainer!r}.")
    trainer_class, config_class = POLICY_TRAINERS[policy_trainer]
    config = config_class(**supported_precision(args), output_dir=str(folder / CHECKPOINTS))
    scale = (
        {} if standardise_with is None else standardisation(reward_model, sft_model, prompt_dataset, standardise_with)
    )
    reward = RewardFunction(*load_reward_model(reward_model), end_token_ids(*load_policy(sft_model)), **scale)
    trainer = trainer_class(
        model=str(sft_model),
        reward_funcs=reward,
        args=config,
        train_dataset=prompt_dataset,
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    save_plain(trainer, folder)
    return _final_figures(trainer)
