"""What a PPO run is given, checked and brought into one form."""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.row_scores import require_reward_model
from trl_rlp.trainer.artifacts import load_reward_model
from trl_rlp.trainer.reward_function import RewardFunction
from trl_rlp.trainer.rlp_ppo_config import RLPPPOConfig


logger = get_logger(__name__)

RewardSource = str | PreTrainedModel | PeftModel | Callable[..., list[float]]


def loaded_policy(model: str | PreTrainedModel | PeftModel, args: RLPPPOConfig) -> PreTrainedModel | PeftModel:
    """
    Gives the policy as an object.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder, Hub name, or the model itself.
        args ([`~trl_rlp.trainer.rlp_ppo_config.RLPPPOConfig`]):
            `model_init_kwargs` are read, with fp32 as the default, as in TRL's trainers.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`].
    """
    if not isinstance(model, str):
        return model
    return AutoModelForCausalLM.from_pretrained(model, **{"dtype": "float32", **(args.model_init_kwargs or {})})


def choose_adapter(model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None, args: RLPPPOConfig) -> None:
    """
    Makes the adapter active that is to be trained.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Of an adapter that is yet to be added.
        args ([`~trl_rlp.trainer.rlp_ppo_config.RLPPPOConfig`]):
            `model_adapter_name` and `ref_adapter_name` are read.

    Raises:
        ValueError: if the policy has no adapter of a name, or one of virtual tokens.
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
    if args.model_adapter_name is not None:
        model.set_adapter(args.model_adapter_name)


def require_models(
    model: PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | PeftModel | None,
    value_model: PreTrainedModel | None,
    reward_funcs: Sequence[RewardSource],
) -> None:
    """
    Checks that the models of a run are what they should be.

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

    Raises:
        TypeError: if the reward model is not a `transformers` model.
        ValueError: if two of them are one object, there is no reward, or `num_labels` is not 1.
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
    if reward_model is not None:
        try:
            require_reward_model(reward_model)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("`model`", "`reward_model`", 1)) from None


def stop_token_ids(
    args: RLPPPOConfig, model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase
) -> list[int]:
    """
    Gives the tokens that end a completion.

    Args:
        args ([`~trl_rlp.trainer.rlp_ppo_config.RLPPPOConfig`]):
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
    if processing_class.eos_token_id is None:
        raise ValueError("`processing_class` has no EOS token, at which completions end. Set its `eos_token`.")
    own = model.generation_config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    return list(dict.fromkeys([processing_class.eos_token_id, *own]))


def reward_functions(
    reward_model: PreTrainedModel | None,
    reward_funcs: Sequence[RewardSource],
    reward_processing_class: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None,
    processing_class: PreTrainedTokenizerBase,
    eos_token_ids: Collection[int],
    device: Any,
) -> list[Callable[..., list[float]]]:
    """
    Gives all sources of rewards as functions; models score through the one scoring function, EOS included.

    Args:
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            Comes first.
        reward_funcs (`Sequence`):
            Reward models, their folders or Hub names, or functions as TRL's GRPO takes them.
        reward_processing_class (`PreTrainedTokenizerBase` or `Sequence`, *optional*):
            Tokenizer of the reward model, or one for each source; functions have `None`. For a model without, the one
            that was saved with it, or else the policy's.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.
        eos_token_ids (`Collection[int]`):
            Token ids that end a completion.
        device:
            Where the models go.

    Returns:
        `list[Callable]`.
    """
    sources = [*([] if reward_model is None else [reward_model]), *reward_funcs]
    tokenizers = _one_each(reward_processing_class, len(sources))
    if len(tokenizers) != len(sources):
        raise ValueError(
            f"`reward_processing_class` has {len(tokenizers)} entries for {len(sources)} sources of rewards. Give one "
            "for each, None for functions."
        )
    functions = []
    for source, tokenizer in zip(sources, tokenizers, strict=True):
        if callable(source) and not isinstance(source, (PreTrainedModel, PeftModel)):
            functions.append(source)
            continue
        model, saved = load_reward_model(source) if isinstance(source, str) else (source, None)
        tokenizer = tokenizer or saved or _tokenizer_of(model, is_first=source is reward_model) or processing_class
        try:
            require_reward_model(model)
        except ValueError as error:
            raise ValueError(str(error).replace("`model`", "A model of `reward_funcs`", 1)) from None
        name = "reward_model" if source is reward_model else str(model.name_or_path).split("/")[-1] or "reward_model"
        options = {"name": name, "reads_policy_tokens": knows_tokens_of(tokenizer, processing_class)}
        options["require_finite"] = False
        functions.append(RewardFunction(model.to(device), tokenizer, eos_token_ids, **options))
    return functions


def knows_tokens_of(reader: PreTrainedTokenizerBase, writer: PreTrainedTokenizerBase) -> bool:
    """
    Says whether a model with one tokenizer can read the token ids of another.

    Args:
        reader (`PreTrainedTokenizerBase`):
            Tokenizer of the model that reads; it may have further tokens, such as a pad token of its own.
        writer (`PreTrainedTokenizerBase`):
            Tokenizer that the ids are of.

    Returns:
        `bool`: whether every token has the same id in both.
    """
    if reader is writer:
        return True
    known = reader.get_vocab()
    return all(known.get(token) == token_id for token, token_id in writer.get_vocab().items())


def _one_each(
    given: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None, sources: int
) -> list[PreTrainedTokenizerBase | None]:
    if isinstance(given, (list, tuple)):
        return list(given)
    return [given, *[None] * (sources - 1)]


def _tokenizer_of(model: PreTrainedModel, is_first: bool) -> PreTrainedTokenizerBase | None:
    """The former trainer's reward model read the policy's tokens, whatever was saved with it."""
    if is_first or not model.name_or_path:
        return None
    return AutoTokenizer.from_pretrained(model.name_or_path)


def with_safe_padding(processing_class: PreTrainedTokenizerBase, vocabulary_size: int) -> PreTrainedTokenizerBase:
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


def counted_in_steps(args: RLPPPOConfig, train_dataset: Dataset | IterableDataset | None) -> RLPPPOConfig:
    """
    Gives the settings as TRL's loop reads them: what counts rollouts becomes optimizer steps.

    Args:
        args ([`~trl_rlp.trainer.rlp_ppo_config.RLPPPOConfig`]):
            Settings of the run; the fields that the trainer sets are set in them.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Prompts.

    Returns:
        [`~trl_rlp.trainer.rlp_ppo_config.RLPPPOConfig`]: a copy.

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
    if isinstance(train_dataset, IterableDataset) and args.standardise_rewards:
        raise ValueError(
            "`train_dataset` is a stream, which `standardise_rewards` cannot sample beforehand. Load it whole, or use "
            "`normalise_rewards`."
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
    scaled.model_init_kwargs = None  # the policy is loaded already
    return scaled
