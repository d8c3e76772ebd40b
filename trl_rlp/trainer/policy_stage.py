"""Steps 3 and 5 of Algorithm 1: training a policy, which leaves a plain model in a folder and returns its figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from trl_rlp.data.sampling import end_token_ids
from trl_rlp.trainer.artifacts import load_policy, load_reward_model
from trl_rlp.trainer.checkpoints import CHECKPOINTS, train_to_end
from trl_rlp.trainer.precision import supported_precision
from trl_rlp.trainer.reward_function import RewardFunction
from trl_rlp.trainer.reward_sources import knows_tokens_of
from trl_rlp.trainer.rlp_ppo_config import RLPPPOConfig
from trl_rlp.trainer.rlp_ppo_trainer import RLPPPOTrainer
from trl_rlp.trainer.standardisation import standardise


POLICY_TRAINERS = {
    "ppo": (RLPPPOTrainer, RLPPPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
}


def train_policy(
    folder: Path,
    sft_model: str | Path,
    reward_model: str | Path,
    prompt_dataset: Dataset,
    args: dict[str, Any],
    policy_trainer: str = "ppo",
    peft_config: LoraConfig | None = None,
    standardise_with: dict[str, Any] | None = None,
    max_length: int | None = None,
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
            Fields of the trainer's config but `output_dir`; β is `kl_coef` for PPO and `beta` for the others.
        policy_trainer (`str`, *optional*, defaults to `"ppo"`):
            `"ppo"`, the paper's, `"rloo"` or `"grpo"`.
        peft_config (`LoraConfig`, *optional*):
            Trains an adapter, which is merged before saving; PPO's value model gets one like it.
        standardise_with (`dict`, *optional*):
            Arguments of `sample_completions` for [`~trl_rlp.trainer.standardisation.standardise`]; `None` leaves the
            rewards as they are.
        max_length (`int`, *optional*):
            Tokens that the reward model was trained on at most.

    Returns:
        `dict[str, float]`: the last value of each logged metric.

    Raises:
        ValueError: if `policy_trainer` is unknown.
    """
    if policy_trainer not in POLICY_TRAINERS:
        raise ValueError(f"`policy_trainer` must be one of {sorted(POLICY_TRAINERS)}, got {policy_trainer!r}.")
    trainer_class, config_class = POLICY_TRAINERS[policy_trainer]
    config = config_class(**supported_precision(args), output_dir=str(folder / CHECKPOINTS))
    model, reward_processing_class = load_reward_model(reward_model)
    policy, processing_class = load_policy(sft_model)
    reward = RewardFunction(
        model,
        reward_processing_class,
        end_token_ids(policy, processing_class),
        reads_policy_tokens=knows_tokens_of(
            reward_processing_class, processing_class, policy.get_input_embeddings().weight.shape[0]
        ),
        max_length=max_length,
        require_finite=policy_trainer != "ppo",
    )
    if standardise_with is not None:
        standardise([reward], policy, processing_class, prompt_dataset, standardise_with)
    trainer = trainer_class(
        model=str(sft_model),
        reward_funcs=reward,
        args=config,
        train_dataset=prompt_dataset,
        processing_class=processing_class,
        peft_config=peft_config,
        **_value_adapter(policy_trainer, peft_config),
    )
    return train_to_end(trainer, folder)


def _value_adapter(policy_trainer: str, peft_config: LoraConfig | None) -> dict[str, Any]:
    if policy_trainer != "ppo" or peft_config is None:
        return {}
    return {"value_peft_config": replace(peft_config, task_type="SEQ_CLS", modules_to_save=["score"])}
