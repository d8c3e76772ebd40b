"""Checks of the arguments of the PPO trainer, before any work."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from accelerate import Accelerator, DistributedType
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import DataCollator, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.token_prompts import require_token_ids
from trl_rlp.data.validation import require_one_split
from trl_rlp.rewards.reward_sources import RewardSource, require_embedding
from trl_rlp.storage.whole_weights import require_whole_weights
from trl_rlp.trainer.frozen_weights import require_trainable
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_setup import max_prompt_length


logger = logging.get_logger(__name__)

Prompts = Dataset | IterableDataset


def require_config(args: PPOConfig, config_class: type[PPOConfig], trainer_name: str) -> None:
    """
    Checks the class of a configuration, and that it sets no field that the trainer does not read.

    Args:
        args ([`PPOConfig`]):
            Configuration of the run.
        config_class (`type`):
            Configuration class of the trainer.
        trainer_name (`str`):
            Name of the trainer, for the message.

    Raises:
        TypeError: If `args` is not of this class.
        ValueError: If a field that only a subclass has is not at its default.
    """
    if not isinstance(args, config_class):
        raise TypeError(
            f"`args` must be a `{config_class.__name__}` for `{trainer_name}`, got `{type(args).__name__}`. It takes "
            "the same fields and more."
        )
    known = {entry.name for entry in fields(config_class)}
    unknown = [entry for entry in fields(args) if entry.name not in known and entry.default is not MISSING]
    ignored = [entry.name for entry in unknown if getattr(args, entry.name) not in (entry.default, {})]
    if ignored:
        raise ValueError(
            f"`{trainer_name}` ignores {ignored} of `{type(args).__name__}`. Use the trainer of that configuration."
        )


def require_fit(
    args: PPOConfig,
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | PeftModel | None,
    value_model: PreTrainedModel | None,
    reward_funcs: Sequence[RewardSource],
    train_dataset: Prompts | None,
    eval_dataset: Prompts | dict[str, Prompts] | None,
    peft_config: PeftConfig | None,
    value_peft_config: PeftConfig | None,
) -> None:
    """
    Checks that the arguments of [`PPOTrainer`] fit together. The arguments are the trainer's.

    Raises:
        TypeError: If a dataset has another type.
        ValueError: If models, adapters or prompts do not fit together, or a model to train is frozen.
    """
    require_one_split(train_dataset, "train_dataset")
    require_value_adapter(args, value_model, value_peft_config)
    require_models(model, ref_model, reward_model, value_model, reward_funcs, processing_class)
    require_datasets({"train_dataset": train_dataset, "eval_dataset": eval_dataset}, model, processing_class, args)
    require_adapters(model, ref_model, peft_config, args)
    if peft_config is None and args.model_adapter_name is None:  # PEFT makes an adapter trainable that it activates
        require_trainable(model, "model", "peft_config")
    if value_model is not None and value_peft_config is None:
        require_trainable(value_model, "value_model", "value_peft_config")


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
        TypeError: If `reward_model` is a function.
        ValueError: If two models are the same object, there is no reward, or a model lacks tokens of the policy.
    """
    given = [("ref_model", ref_model), ("reward_model", reward_model), ("value_model", value_model)]
    _require_whole_models([("model", model), *given, *(("reward_funcs", source) for source in reward_funcs)])
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
    if reward_model is not None and callable(reward_model) and not isinstance(reward_model, nn.Module):
        raise TypeError("`reward_model` is a function. Pass functions in `reward_funcs`.")
    if reward_model is None and not reward_funcs:
        raise ValueError("`reward_model` is None and there are no `reward_funcs`. Pass one of them.")
    vocabulary_size = model.get_input_embeddings().weight.shape[0]
    for label, other in (("`ref_model`", ref_model), ("`value_model`", value_model)):
        if other is not None:
            require_embedding(label, other, processing_class, vocabulary_size)


def _require_whole_models(sources: list[tuple[str, Any]]) -> None:
    for name, source in sources:
        if not isinstance(source, nn.Module):
            continue
        if name != "model":  # it may have been loaded by name, and has been checked if not
            require_whole_weights(name)
        # DeepSpeed gives the parameters that it splits an id.
        if any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in source.parameters()):
            raise ValueError(
                f"`{name}` is sharded already, but the trainer needs whole models. Load it before the trainer's "
                "configuration is created, without `tp_plan`, and with `zero3_init_flag: false` under DeepSpeed."
            )


def require_value_adapter(
    args: PPOConfig, value_model: PreTrainedModel | PeftModel | None, value_peft_config: PeftConfig | None
) -> None:
    """
    Checks that the value model has an adapter under DeepSpeed. Its engine holds one model, the policy, so each process
    has a full copy of the value model and of its optimizer's state.

    Args:
        args ([`PPOConfig`]):
            Configuration of the run.
        value_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Value model that the user passed.
        value_peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of an adapter of the value model.

    Raises:
        ValueError: If all weights of the value model would be trained under DeepSpeed.
    """
    if args.deepspeed_plugin is None or value_peft_config is not None or isinstance(value_model, PeftModel):
        return
    raise ValueError(
        "`value_peft_config` (`policy_peft` of a pipeline) is None under DeepSpeed, so each process would train a "
        'whole copy of the value model, 16 bytes a weight. Pass `LoraConfig(task_type="SEQ_CLS")`, or use FSDP2.'
    )


def require_backend(accelerator: Accelerator, args: PPOConfig) -> None:
    """
    Checks that the trainer works with the kind of distributed training that accelerate was started with.

    Args:
        accelerator (`accelerate.Accelerator`):
            The trainer's accelerator.
        args ([`PPOConfig`]):
            Configuration of the run.

    Raises:
        ValueError: If it is FSDP1, if weights are sharded and the LM head is to stay in fp32, if DeepSpeed has a
            schedule of its own, or if several machines are to save.
    """
    is_fsdp = accelerator.distributed_type == DistributedType.FSDP
    if is_fsdp and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("`fsdp_version` is 1, which does not shard policy and value model together. Set it to 2.")
    if accelerator.distributed_type == DistributedType.DEEPSPEED and _has_own_schedule(accelerator):
        raise ValueError(
            "The DeepSpeed configuration has a `scheduler`, which would count optimizer steps, but the learning rate "
            "of PPO follows the rollouts. Remove it, and set `lr_scheduler_type` and `warmup_steps`."
        )
    if args.save_on_each_node and accelerator.num_processes > 1:
        raise ValueError(
            "`save_on_each_node` is True, but transformers saves weights on the first machine only. Set it to False, "
            "and use an `output_dir` that all machines share."
        )
    if args.cast_lm_head_to_fp32 and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "`cast_lm_head_to_fp32` is True, but FSDP and DeepSpeed choose the dtype of the weights that they shard. "
            "Set it to False."
        )


def _has_own_schedule(accelerator: Accelerator) -> bool:
    return "scheduler" in accelerator.state.deepspeed_plugin.deepspeed_config


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
        TypeError: If a dataset has another type.
        ValueError: If a stream is empty, a column is missing, or token ids do not fit the policy.
    """
    named: dict[str, Prompts] = {}
    for name, dataset in datasets.items():
        if isinstance(dataset, dict):
            named |= {f"{name}[{key!r}]": entry for key, entry in dataset.items()}
        elif dataset is not None:
            named[name] = dataset
    for name, dataset in named.items():
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(
                f"`{name}` must be a `Dataset` or an `IterableDataset`, got `{type(dataset).__name__}`. Convert "
                "it, for example with `Dataset.from_list`."
            )
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
