"""Checks of the arguments of the PPO trainer, before any work."""

from collections.abc import Sequence

from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import DataCollator, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.token_prompts import require_token_ids
from trl_rlp.rewards.reward_sources import RewardSource, require_embedding
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_setup import max_prompt_length


logger = logging.get_logger(__name__)

Prompts = Dataset | IterableDataset


def require_models(
    model: PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | PeftModel | None,
    value_model: PreTrainedModel | None,
    reward_funcs: Sequence[RewardSource],
    processing_class: PreTrainedTokenizerBase,
) -> None:
    """
    Checks that the models of a run fit together.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference policy.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reward model.
        value_model ([`~transformers.PreTrainedModel`], *optional*):
            Value model.
        reward_funcs (`Sequence`):
            Further reward models and functions.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.

    Raises:
        ValueError: If two models are the same object, there is no reward, or a model lacks tokens of the policy.
    """
    if ref_model is model:
        raise ValueError(
            "`model` and `ref_model` are the same object, so the KL divergence would always be 0. Pass None for a "
            "copy of the initial policy, or load the reference policy separately."
        )
    if value_model is not None and any(value_model is other for other in (model, ref_model, reward_model)):
        raise ValueError(
            "`value_model` is also the policy, the reference policy or the reward model, but it is trained "
            "separately. Pass None for a copy of the reward model, or load it separately."
        )
    if reward_model is None and not reward_funcs:
        raise ValueError("`reward_model` is None and there are no `reward_funcs`. Pass one of them.")
    vocabulary_size = model.get_input_embeddings().weight.shape[0]
    for label, other in (("`ref_model`", ref_model), ("`value_model`", value_model)):
        if other is not None:
            require_embedding(label, other, processing_class, vocabulary_size)


def require_adapters(
    model: PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    peft_config: PeftConfig | None,
    args: PPOConfig,
) -> None:
    """
    Checks the adapters of the policy.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference policy, if it is a separate model.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of an adapter that the trainer adds.
        args ([`PPOConfig`]):
            Provides `model_adapter_name` and `ref_adapter_name`.

    Raises:
        ValueError: If the policy has no adapter with a given name, an adapter uses virtual tokens, or two reference
            policies are given.
    """
    adapters = model.peft_config if isinstance(model, PeftModel) else {}
    if any(config is not None and config.is_prompt_learning for config in (peft_config, *adapters.values())):
        raise ValueError(
            "The policy's adapter uses virtual tokens (prompt or prefix tuning). PPO cannot read their "
            "log-probabilities. Use LoRA or another adapter that changes weights."
        )
    for name in ("model_adapter_name", "ref_adapter_name"):
        if vars(args)[name] not in (None, *adapters):
            raise ValueError(
                f"`{name}`={vars(args)[name]!r} is not one of the policy's adapters, {list(adapters)}. Use one of "
                "them, or pass a `PeftModel` that has it."
            )
    if args.ref_adapter_name is not None and ref_model is not None:
        raise ValueError(
            f"`ref_model` and `ref_adapter_name`={args.ref_adapter_name!r} both define the reference policy. Pass one "
            "of them."
        )


def require_datasets(
    datasets: dict[str, Prompts | dict[str, Prompts] | None],
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> None:
    """
    Checks the prompts of a run. Text prompts and streams are checked later, when they are read.

    Args:
        datasets (`dict`):
            Datasets by the name of their argument. An argument may hold several datasets by name.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        args ([`PPOConfig`]):
            Configuration of the run.

    Raises:
        ValueError: If a stream is empty, a column is missing, or token ids do not fit the policy.
    """
    named: dict[str, Prompts] = {}
    for name, dataset in datasets.items():
        if isinstance(dataset, dict):
            named |= {f"{name}[{key!r}]": entry for key, entry in dataset.items()}
        elif dataset is not None:
            named[name] = dataset
    for name, dataset in named.items():
        if isinstance(dataset, IterableDataset):
            if next(iter(dataset.take(1)), None) is None:
                raise ValueError(f"`{name}` is an empty stream. Pass at least one row.")
        elif "prompt" not in dataset.column_names:
            if "input_ids" not in dataset.column_names:
                raise ValueError(
                    f"`{name}` lacks a column `prompt` (text or messages) or `input_ids`. It has "
                    f"{dataset.column_names}. Rename or add one."
                )
            vocabulary_size = model.get_input_embeddings().weight.shape[0]
            longest = max_prompt_length(model, args)
            require_token_ids(dataset, name, processing_class.pad_token_id, vocabulary_size, longest)


def warn_of_collator(data_collator: DataCollator | None) -> None:
    """
    Warns that a collator is not used, unless it only pads. The trainer pads prompts when it samples them.

    Args:
        data_collator (`DataCollator`, *optional*):
            Collator that the user passed.
    """
    if data_collator is not None and not isinstance(data_collator, DataCollatorWithPadding):
        logger.warning(
            f"`data_collator` (`{type(data_collator).__name__}`) is not used: the trainer pads prompts when it "
            "samples them. Apply the collator's work to the dataset with `Dataset.map`."
        )
