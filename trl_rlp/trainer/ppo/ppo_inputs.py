"""What a PPO run is given, checked and brought into one form."""

import copy
import math
from collections.abc import Sequence

from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.sampling.in_process import get_eos_token_ids
from trl_rlp.rewards.reward_sources import RewardSource, require_embedding
from trl_rlp.trainer.ppo.ppo_setup import disable_dropout
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


def prepare_policy(
    model: str | PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase | None, args: RLPPPOConfig
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """
    Gives policy and tokenizer as objects.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder, Hub name, or the model itself.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer. If not set, the one that was saved with it.
        args ([`RLPPPOConfig`]):
            `model_init_kwargs` are read, with fp32 as the default, as in TRL's trainers, and `disable_dropout`.

    Returns:
        `tuple`: what was passed, or what was loaded in its place.
    """
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(model, **{"dtype": "float32", **(args.model_init_kwargs or {})})
    if args.disable_dropout:
        disable_dropout(model)  # TRL knows one kind of it
    return model, processing_class or AutoTokenizer.from_pretrained(model.name_or_path)


def choose_adapter(
    model: PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    peft_config: PeftConfig | None,
    args: RLPPPOConfig,
) -> None:
    """
    Makes the adapter active that is to be trained.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference, if it is a model of its own.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Of an adapter that is yet to be added.
        args ([`RLPPPOConfig`]):
            `model_adapter_name` and `ref_adapter_name` are read.

    Raises:
        ValueError: if the policy has no adapter of a name, or one of virtual tokens, or there are two references.
    """
    adapters = model.peft_config if isinstance(model, PeftModel) else {}
    if any(config is not None and config.is_prompt_learning for config in (peft_config, *adapters.values())):
        raise ValueError(
            "The policy's adapter is one of virtual tokens (prompt or prefix tuning), whose log-probabilities PPO "
            "does not read. Use LoRA or another adapter of weights."
        )
    for name in ("model_adapter_name", "ref_adapter_name"):
        if vars(args)[name] not in (None, *adapters):
            raise ValueError(
                f"`{name}`={vars(args)[name]!r} is none of the policy's adapters, which are {list(adapters)}. Name "
                "one of them, or pass a `PeftModel` that has it."
            )
    if args.ref_adapter_name is not None and ref_model is not None:
        raise ValueError(
            f"`ref_model` and `ref_adapter_name`={args.ref_adapter_name!r} are both given, for one reference. "
            "Pass one of them."
        )
    if args.model_adapter_name is not None:
        model.set_adapter(args.model_adapter_name)


def require_models(
    model: PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | PeftModel | None,
    value_model: PreTrainedModel | None,
    reward_funcs: Sequence[RewardSource],
    processing_class: PreTrainedTokenizerBase,
) -> None:
    """
    Checks that the models of a run go together.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            The reward model.
        value_model ([`~transformers.PreTrainedModel`], *optional*):
            The value model.
        reward_funcs (`Sequence`):
            Further sources of rewards.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.

    Raises:
        ValueError: if two of them are one object, there is no reward, or one lacks tokens of the policy.
    """
    if ref_model is model:
        raise ValueError(
            "`model` and `ref_model` are the same object, so the KL divergence would always be 0. Pass None for a "
            "copy of the policy as it starts, or load the reference apart."
        )
    if value_model is not None and any(value_model is other for other in (model, ref_model, reward_model)):
        raise ValueError(
            "`value_model` is also the policy, the reference or the reward model, but it is trained on its own. Leave "
            "it at None for a copy of the reward model, or load it apart."
        )
    if reward_model is None and not reward_funcs:
        raise ValueError("`reward_model` is None and there are no `reward_funcs`. Pass one of them.")
    vocabulary_size = model.get_input_embeddings().weight.shape[0]
    for label, other in (("`ref_model`", ref_model), ("`value_model`", value_model)):
        if other is not None:
            require_embedding(label, other, processing_class, vocabulary_size)


def stop_token_ids(
    args: RLPPPOConfig, model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase
) -> list[int]:
    """
    Gives the tokens that end a completion.

    Args:
        args ([`RLPPPOConfig`]):
            `stop_token` and `stop_token_id` are read.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.

    Returns:
        `list[int]`: empty if nothing ends a completion but its length.

    Raises:
        ValueError: if the stop token lies outside the vocabulary, or there is no EOS token.
    """
    if args.stop_token_id is not None:
        size = model.get_input_embeddings().weight.shape[0]
        if not 0 <= args.stop_token_id < size:
            raise ValueError(f"`stop_token_id`={args.stop_token_id} lies outside the policy's vocabulary of {size}.")
        return [args.stop_token_id]
    if args.stop_token is None:
        return []
    return get_eos_token_ids(model, processing_class)


def ensure_embedded_pad_token(
    processing_class: PreTrainedTokenizerBase, vocabulary_size: int
) -> PreTrainedTokenizerBase:
    """
    Gives a tokenizer whose pad token the policy's embedding has.

    Padding is masked everywhere, so which token stands there is of no consequence, but its row is looked up.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Rows of the embedding.

    Returns:
        `PreTrainedTokenizerBase`: the same, or a copy that pads with EOS.
    """
    pad_token_id = processing_class.pad_token_id
    if pad_token_id is not None and pad_token_id < vocabulary_size:
        return processing_class
    processing_class = copy.deepcopy(processing_class)
    processing_class.pad_token = processing_class.eos_token
    return processing_class


def rollouts_to_steps(args: RLPPPOConfig, train_dataset: Dataset | IterableDataset | None) -> RLPPPOConfig:
    """
    Gives the settings as TRL's loop reads them: what counts rollouts becomes optimizer steps.

    Args:
        args ([`RLPPPOConfig`]):
            Settings of the run; the fields that the trainer sets are set in them.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Prompts.

    Returns:
        [`RLPPPOConfig`]: a copy.

    Raises:
        ValueError: if there are no prompts, or fewer than a rollout takes, or the length of the run is not known.
    """
    if train_dataset is None:
        raise ValueError("`train_dataset` is None. Pass prompts: a column `prompt` (text or messages) or `input_ids`.")
    args.local_batch_size = args.per_device_train_batch_size * args.steps_per_generation
    args.batch_size = args.local_batch_size * args.world_size
    args.micro_batch_size = args.per_device_train_batch_size * args.world_size
    args.mini_batch_size = args.batch_size // args.num_mini_batches
    args.local_mini_batch_size = args.local_batch_size // args.num_mini_batches
    if isinstance(train_dataset, IterableDataset) and args.standardize_rewards:
        raise ValueError(
            "`train_dataset` is a stream, which `standardize_rewards` cannot sample beforehand. Load it whole, or use "
            "`normalize_rewards`."
        )
    prompts = None if isinstance(train_dataset, IterableDataset) else len(train_dataset)
    if prompts is not None and prompts * args.num_generations < args.batch_size:
        raise ValueError(
            f"`train_dataset` has {prompts} prompts, but a rollout takes {args.batch_size // args.num_generations}. "
            "Lower `per_device_train_batch_size` or `gradient_accumulation_steps`, or pass more prompts."
        )
    if args.total_episodes is None and args.max_steps <= 0 and prompts is None:
        raise ValueError("`train_dataset` is a stream, whose length is not known. Set `total_episodes`.")
    if args.total_episodes is not None:
        args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)
    elif args.max_steps > 0:
        args.num_total_batches = args.max_steps
    else:
        args.num_total_batches = math.ceil(
            int(args.num_train_epochs * prompts * args.num_generations) / args.batch_size
        )
    scaled = copy.copy(args)
    scaled.max_steps = args.num_total_batches * args.steps_per_rollout
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = vars(args)[name]
        if value is not None:
            rollouts = math.ceil(value * args.num_total_batches) if value < 1 else int(value)
            setattr(scaled, name, rollouts * args.steps_per_rollout)
    if args.eval_strategy == "steps":
        scaled.eval_delay = args.eval_delay * args.steps_per_rollout
    scaled.model_init_kwargs = None  # the policy is loaded already
    scaled.shuffle_dataset = args.shuffle_dataset and prompts is not None  # a stream comes in its order
    return scaled
