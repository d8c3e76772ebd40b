"""Steps 3 and 5 of Algorithm 1: trains a policy and saves it as a plain model."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from trl_rlp.data.groups.equivalence import release_after
from trl_rlp.data.sampling.stop_tokens import get_eos_token_ids
from trl_rlp.data.token_prompts import PASSED_NAMES
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.reward_sources import shares_token_ids
from trl_rlp.rewards.standardization import standardize
from trl_rlp.stages.in_loop import InLoop
from trl_rlp.storage.adapters import find_adapter
from trl_rlp.storage.artifacts import CAUSAL_LM, load_complete_model, load_policy, load_reward_model, save_model
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import run_on_main
from trl_rlp.storage.run_folder import CHECKPOINTS
from trl_rlp.trainer.callbacks.reward_refinement_callback import RewardRefinementCallback
from trl_rlp.trainer.checkpoints import train_to_end
from trl_rlp.trainer.hub_options import hub_options
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer
from trl_rlp.trainer.precision import supported_precision


MERGED_MODEL = "merged_sft_model"
"""Name of the folder that holds π_SFT while a trainer of TRL trains it, if π_SFT is an adapter."""
POLICY_TRAINERS = {
    "ppo": (PPOTrainer, PPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
}
"""Trainers of the policy and their configurations by name. The names are the values of `RLPConfig.policy_trainer`."""


def train_policy(
    folder: Path,
    sft_model: str | Path,
    reward_model: str | Path,
    prompt_dataset: Dataset,
    args: dict[str, Any],
    policy_trainer: str = "ppo",
    peft_config: LoraConfig | None = None,
    standardize_with: dict[str, Any] | None = None,
    max_length: int | None = None,
    model_options: dict[str, Any] | None = None,
    in_loop: InLoop | None = None,
    tags: Sequence[str] = (),
) -> dict[str, float]:
    """
    Trains a policy from π_SFT to maximize E[r(x, y) - β KL(π ‖ π_SFT)].

    Args:
        folder (`Path`):
            Folder for the plain causal LM. Training resumes from the last checkpoint in it.
        sft_model (`str` or `Path`):
            Folder or Hub name of π_SFT, the initial policy and the reference policy of the KL divergence.
        reward_model (`str` or `Path`):
            Folder or Hub name of the reward model r_φ or r̂_φ.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U with a column `prompt`.
        args (`dict`):
            Fields of the trainer's configuration except `output_dir`. β is `kl_coef` for PPO and `beta` for the
            others.
        policy_trainer (`str`, *optional*, defaults to `"ppo"`):
            `"ppo"` (the paper's), `"rloo"` or `"grpo"`.
        peft_config (`LoraConfig`, *optional*):
            Configuration of an adapter to train. The adapter is merged into the model before saving. PPO's value model
            gets a similar adapter.
        standardize_with (`dict`, *optional*):
            Arguments of [`sample_completions`] for [`standardize`]. `None` leaves the rewards unchanged.
        max_length (`int`, *optional*):
            Maximum number of tokens that the reward model was trained on.
        model_options (`dict`, *optional*):
            Further arguments of [`load_policy`] and [`load_reward_model`] for the reward model, and for π_SFT where it
            only samples.
        in_loop ([`InLoop`], *optional*):
            The anchor reward, and refinement of the reward model during the training. The reward model after its last
            refinement is saved in the subfolder [`LAST_REWARD_MODEL`]. The equivalence's model is released at the end.
        tags (`Sequence[str]`, *optional*):
            Further tags of the model card. [`METHOD_TAG`] also names the paper in it.

    Returns:
        `dict[str, float]`: Last value of each logged metric.

    Raises:
        ValueError: If `policy_trainer` is unknown.
    """
    if policy_trainer not in POLICY_TRAINERS:
        raise ValueError(f"`policy_trainer` must be one of {sorted(POLICY_TRAINERS)}, got {policy_trainer!r}.")
    trainer_class, config_class = POLICY_TRAINERS[policy_trainer]
    config = config_class(**supported_precision(args), output_dir=str(folder / CHECKPOINTS))
    reward, processing_class = _build_reward_function(
        config, sft_model, reward_model, prompt_dataset, standardize_with, max_length, model_options or {}
    )
    rewards: Any = reward
    callbacks: list[RewardRefinementCallback] = []
    if in_loop is not None:
        rewards, callbacks = in_loop.extend_rewards(reward, config.generation_batch_size, folder / CHECKPOINTS)
        if in_loop.anchor_weight:
            config.reward_weights = in_loop.extend_weights([1.0])
    initial_policy = _find_plain_model(sft_model, config, folder / MERGED_MODEL, processing_class)
    trainer = trainer_class(
        model=initial_policy,
        reward_funcs=rewards,
        args=config,
        train_dataset=prompt_dataset.remove_columns(
            [name for name in PASSED_NAMES if name in prompt_dataset.column_names]
        ),
        processing_class=processing_class,
        callbacks=callbacks,
        peft_config=peft_config,
        **_value_adapter(policy_trainer, peft_config),
    )
    if initial_policy != expand_path(sft_model):
        trainer.model.config._name_or_path = expand_path(sft_model)  # what model cards name
    with release_after(None if in_loop is None else in_loop.equivalence):
        metrics = train_to_end(trainer, folder, tags)
    for callback in callbacks if in_loop is not None else ():
        in_loop.save_reward_model(folder, trainer, callback)
    run_on_main(lambda: shutil.rmtree(folder / MERGED_MODEL, ignore_errors=True))
    return metrics


def _find_plain_model(
    sft_model: str | Path,
    config: PPOConfig | RLOOConfig | GRPOConfig,
    folder: Path,
    processing_class: PreTrainedTokenizerBase,
) -> str:
    """
    Returns a path of π_SFT from which the trainer can load the policy and its reference.

    The trainers of TRL load plain models only, and load the reference by the path of the policy. So an adapter is
    merged into its model, in a folder. Their vLLM also loads the tokenizer from there. PPO's trainer loads adapters
    itself.
    """
    path, options = expand_path(sft_model), hub_options(config)
    if isinstance(config, PPOConfig) or find_adapter(path, options.get("revision")) is None:
        return path
    run_on_main(lambda: _save_merged(path, options, folder, processing_class))
    return str(folder)


def _save_merged(path: str, options: dict[str, Any], folder: Path, processing_class: PreTrainedTokenizerBase) -> None:
    """Saves a model with its adapter merged, in fp32, so that no dtype of the trainer loses a part of the adapter."""
    model = load_complete_model(AutoModelForCausalLM, path, CAUSAL_LM, dtype="float32", **options)
    save_model(folder, model, processing_class)


def _build_reward_function(
    config: PPOConfig | RLOOConfig | GRPOConfig,
    sft_model: str | Path,
    reward_model: str | Path,
    prompt_dataset: Dataset,
    standardize_with: dict[str, Any] | None,
    max_length: int | None,
    model_options: dict[str, Any],
) -> tuple[RewardFunction, PreTrainedTokenizerBase]:
    """
    Builds the reward function. Returns it with the tokenizer of π_SFT.

    π_SFT is in memory only during this call, because the trainer loads the weights that it trains.
    """
    options = {"trust_remote_code": config.trust_remote_code, **model_options}
    model, reward_processing_class = load_reward_model(reward_model, **options)
    policy, processing_class = load_policy(sft_model, **{**model_options, **hub_options(config)})
    vocabulary_size = policy.get_input_embeddings().weight.shape[0]
    reward = RewardFunction(
        model,
        reward_processing_class,
        _find_finish_tokens(config, policy, processing_class),
        reads_policy_tokens=shares_token_ids(reward_processing_class, processing_class, vocabulary_size),
        max_length=max_length,
        require_finite=not isinstance(config, PPOConfig),
        chat_template_kwargs=config.chat_template_kwargs,
    )
    if standardize_with is not None:
        standardize([reward], policy, processing_class, prompt_dataset, standardize_with)
    return reward, processing_class


def _find_finish_tokens(
    config: PPOConfig | RLOOConfig | GRPOConfig, policy: PreTrainedModel, processing_class: PreTrainedTokenizerBase
) -> list[int]:
    """Returns the tokens that finish a completion, the same ones as in the trainer."""
    stop_token_ids = config.stop_token_ids if isinstance(config, PPOConfig) else None
    return stop_token_ids or get_eos_token_ids(policy, processing_class)


def _value_adapter(policy_trainer: str, peft_config: LoraConfig | None) -> dict[str, Any]:
    if policy_trainer != "ppo" or peft_config is None:
        return {}
    return {"value_peft_config": replace(peft_config, task_type="SEQ_CLS", modules_to_save=["score"])}
