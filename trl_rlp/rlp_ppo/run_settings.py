"""Settings that the RLP-PPO trainer derives: those of the refinement, and those that identify a run."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.pipeline_config import RefinementSettings
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.storage.fingerprints import (
    dataset_fingerprint,
    tokenizer_fingerprint,
    value_fingerprint,
    weights_fingerprint,
)
from trl_rlp.storage.precision import dtype_option
from trl_rlp.trainer.ppo.ppo_config import DERIVED_SIZES
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


INHERITED = (
    "seed",
    "use_cpu",
    "bf16",
    "gradient_checkpointing",
    "trust_remote_code",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "disable_tqdm",
)
"""Fields that the trainer of the refined reward model inherits unless `rlp_reward_args` sets them."""

IRRELEVANT_PREFIXES = (
    "output_dir",
    "run_name",
    "report_to",
    "project",
    "trackio_",
    "hub_",
    "push_",
    "log_",
    "logging_",
    "save_",
    "resume_",
    "restore_",
    "do_",
    "enable_jit_",
    "eval_",
    "disable_tqdm",
    "dataloader_",
    "ddp_",
    "sft_model_path",
    "num_sample_",
    "num_completions_to_",
    "reward_model_path",
    "dataset_num_proc",
    "local_",
    "skip_memory_",
    "torch_empty_cache_",
    "vllm_server_",
    "vllm_group_",
    "vllm_gpu_",
    "vllm_tensor_",
    "vllm_enable_sleep_",
)
"""Prefixes of the names of fields that do not decide the results. Some decide where or how fast a run computes."""


def refinement_args(args: RLPPPOConfig) -> dict[str, Any]:
    """
    Collects the fields for the trainer of the refined reward model: the user's and the [`INHERITED`] ones.

    Args:
        args ([`RLPPPOConfig`]):
            Configuration of the run.

    Returns:
        `dict`: Fields of [`RLPRewardConfig`] except `output_dir` and `method`.

    Raises:
        ValueError: If the user's device or precision differs from the policy's, which is trained in the same process.
    """
    for name in ("use_cpu", "bf16", "fp16"):
        if args.rlp_reward_args.get(name, vars(args)[name]) != vars(args)[name]:
            raise ValueError(
                f"`rlp_reward_args` sets `{name}`={args.rlp_reward_args[name]}, but the policy's trainer in the same "
                f"process has {vars(args)[name]}. Set it only for the policy's trainer."
            )
    return {**{name: vars(args)[name] for name in INHERITED}, **args.rlp_reward_args}


def build_reward_config(args: RLPPPOConfig) -> RLPRewardConfig:
    """
    Builds the configuration of the refined reward model.

    Args:
        args ([`RLPPPOConfig`]):
            Configuration of the run.

    Returns:
        [`RLPRewardConfig`]: The configuration. The stage sets another `output_dir`.
    """
    return RLPRewardConfig(output_dir=args.output_dir, method=args.rlp_method, **refinement_args(args))


def build_refinement_settings(args: RLPPPOConfig, initial_policy: Path, config: RLPRewardConfig) -> RefinementSettings:
    """
    Builds the settings of step 4.

    Args:
        args ([`RLPPPOConfig`]):
            Configuration of the run.
        initial_policy (`Path`):
            Folder of π_SFT.
        config ([`RLPRewardConfig`]):
            Result of [`build_reward_config`].

    Returns:
        [`RefinementSettings`]: The settings.
    """
    return RefinementSettings(
        base_model=args.rlp_reward_base or initial_policy,
        config=config,
        args=refinement_args(args),
        model_options={"trust_remote_code": args.trust_remote_code, **dtype_option(args.inference_dtype)},
        sampling={
            "num_generations": args.rlp_num_generations,
            "temperature": args.rlp_temperature,
            "max_new_tokens": args.max_completion_length,
            "stop_token_ids": args.stop_token_ids,
            "chat_template_kwargs": args.chat_template_kwargs,
            "seed": args.seed,
        },
        seed=args.seed,
        anchor_weight=args.rlp_anchor_weight,
        refine_every=args.rlp_refine_every,
    )


def describe_run(
    args: RLPPPOConfig,
    policy: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompt_dataset: Dataset,
    preference_dataset: Dataset,
    equivalence: Equivalence | None,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """
    Collects everything that decides the results, as plain values that the run folder compares.

    Args:
        args ([`RLPPPOConfig`]):
            Configuration of the run.
        policy ([`~transformers.PreTrainedModel`]):
            Initial policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `policy`.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same.
        arguments (`dict[str, Any]`):
            Further arguments of the trainer that decide the weights of the first policy.

    Returns:
        `dict[str, Any]`: Settings by name.
    """
    fields = json.loads(json.dumps(args.to_dict(), default=str))
    deciding = {k: v for k, v in fields.items() if not k.startswith(IRRELEVANT_PREFIXES) and k not in DERIVED_SIZES}
    return {
        **{f"args.{name}": value for name, value in deciding.items()},
        "policy": weights_fingerprint(policy),
        "tokenizer": tokenizer_fingerprint(processing_class),
        "prompts": dataset_fingerprint(prompt_dataset),
        "preference_dataset": dataset_fingerprint(preference_dataset),
        "equivalence": None if equivalence is None else equivalence.fingerprint,
        **{name: fingerprint_argument(value, args.standardize_rewards) for name, value in arguments.items()},
    }


def fingerprint_argument(value: Any, is_standardized: bool = False) -> Any:
    """
    Computes a plain value that identifies an argument of a trainer.

    Args:
        value (`Any`):
            A model, a tokenizer, a PEFT configuration, a [`RewardFunction`], another function (identified by its name
            only), a path, text, `None`, or a list of them.
        is_standardized (`bool`, *optional*, defaults to `False`):
            Whether the trainer sets the scale of a [`RewardFunction`]. Its scale then does not count.

    Returns:
        `str`, `list` or `None`: Fingerprint of the value.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [fingerprint_argument(entry, is_standardized) for entry in value]
    if isinstance(value, nn.Module):
        return weights_fingerprint(value)
    if isinstance(value, PreTrainedTokenizerBase):
        return tokenizer_fingerprint(value)
    if isinstance(value, PeftConfig):
        return value_fingerprint(json.loads(json.dumps(value.to_dict(), default=_to_plain)))
    if isinstance(value, RewardFunction):
        return _fingerprint_reward_function(value, is_standardized)
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__qualname__)


def _fingerprint_reward_function(function: RewardFunction, is_standardized: bool) -> str:
    settings = [
        function.__name__,
        weights_fingerprint(function.model),
        tokenizer_fingerprint(function.processing_class),
        sorted(function.eos_token_ids),
        function.max_length,
        function.reads_policy_tokens,
        function.chat_template_kwargs,
        None if is_standardized else [function.mean, function.standard_deviation],
    ]
    return value_fingerprint(json.loads(json.dumps(settings, default=_to_plain)))


def _to_plain(value: Any) -> Any:
    """Sorts sets, because their order differs between processes."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
