"""Setup of a PPO run: policy, tokenizer, stop tokens and value model."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn, no_grad
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trl_rlp.data.context import read_context
from trl_rlp.data.sampling.stop_tokens import get_eos_token_ids
from trl_rlp.data.score_inputs import find_score_layers
from trl_rlp.storage.artifacts import CAUSAL_LM, load_complete_model, load_tokenizer
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.precision import is_quantized
from trl_rlp.storage.whole_weights import require_whole_weights, whole_weights
from trl_rlp.trainer.hub_options import hub_options
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.score_head import add_score_head, keep_trained_head_in_fp32


def prepare_policy(
    model: str | Path | PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase | None, args: PPOConfig
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """
    Loads policy and tokenizer if they are not loaded yet.

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder, Hub name, or the model itself.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. If `None`, it is loaded from the model's folder.
        args ([`PPOConfig`]):
            Provides `model_init_kwargs` and `trust_remote_code`. The dtype defaults to float32, as in TRL's trainers.

    Returns:
        `tuple`: The policy and its tokenizer.
    """
    if isinstance(model, str | Path):
        path, options = expand_path(model), hub_options(args)
        model = load_complete_model(
            AutoModelForCausalLM, path, CAUSAL_LM, **{"dtype": "float32", **(args.model_init_kwargs or {}), **options}
        )
    else:
        require_whole_weights("model")
        path, options = model.name_or_path, {"trust_remote_code": args.trust_remote_code}
    return model, processing_class or load_tokenizer(path, **options)


@contextmanager
def without_dropout(*models: nn.Module) -> Iterator[None]:
    """
    Sets all dropout probabilities of models to 0, including those that layers of transformers store as numbers.
    Afterwards, they are as before.

    Args:
        models (`nn.Module`):
            Models in training.
    """
    probabilities = [
        (module, name, value)
        for model in models
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, nn.Dropout)))
    ]
    for module, name, _ in probabilities:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in probabilities:
            setattr(module, name, value)


def max_prompt_length(model: PreTrainedModel | PeftModel, args: PPOConfig) -> int | None:
    """
    Computes the maximum length of a prompt that leaves room for a completion in the context.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        args ([`PPOConfig`]):
            Provides `max_completion_length`.

    Returns:
        `int` or `None`: Number of tokens. `None` for a model without a limit.
    """
    context = read_context(model)
    return None if context is None else context - args.max_completion_length


def resolve_stop_tokens(
    args: PPOConfig, model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase
) -> list[int]:
    """
    Determines the tokens that end a completion.

    Args:
        args ([`PPOConfig`]):
            Provides `stop_token` and `stop_token_id`.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.

    Returns:
        `list[int]`: Token ids. Empty if only the length ends a completion.

    Raises:
        ValueError: If the stop token is outside the vocabulary, or there is no EOS token.
    """
    if args.stop_token_id is not None:
        vocabulary_size = model.get_input_embeddings().weight.shape[0]
        if not 0 <= args.stop_token_id < vocabulary_size:
            raise ValueError(
                f"`stop_token_id`={args.stop_token_id} is outside the policy's vocabulary of {vocabulary_size} tokens."
            )
        return [args.stop_token_id]
    if args.stop_token is None:
        return []
    return get_eos_token_ids(model, processing_class)


def ensure_embedded_pad_token(
    processing_class: PreTrainedTokenizerBase, vocabulary_size: int
) -> PreTrainedTokenizerBase:
    """
    Replaces a pad token that the policy's embedding does not have. The embedding reads padding although it is masked.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        vocabulary_size (`int`):
            Number of rows of the embedding.

    Returns:
        `PreTrainedTokenizerBase`: The same tokenizer, or a copy that pads with EOS.
    """
    pad_token_id = processing_class.pad_token_id
    if pad_token_id is not None and pad_token_id < vocabulary_size:
        return processing_class
    processing_class = copy.deepcopy(processing_class)
    processing_class.pad_token = processing_class.eos_token
    return processing_class


def init_value_model(
    init: str | None,
    policy: PreTrainedModel | PeftModel,
    reward_model: PreTrainedModel | None,
    is_frozen: bool = False,
) -> PreTrainedModel:
    """
    Creates a value model from the reward model or the policy. Its score head is 0, so all values start at 0.

    Small optimizer steps are lost in 16 bits. So a value model that is trained in full has the dtype of the policy's
    trained weights, which is fp32 for the adapter of a policy in bf16.

    Args:
        init (`str`, *optional*):
            `"reward"`, `"policy"`, or `None` for the reward model if there is one.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy. Its adapters are not copied.
        reward_model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reward model, if it reads the policy's tokens. Adapters are merged.
        is_frozen (`bool`, *optional*, defaults to `False`):
            Whether an adapter of the value model will be trained instead. The copy then has the policy's dtype.

    Returns:
        [`~transformers.PreTrainedModel`]: A copy that shares no weights with either model.

    Raises:
        ValueError: If `init` is `"reward"` and there is no such reward model, or the model to copy is quantized.
    """
    if init == "reward" and reward_model is None:
        raise ValueError(
            '`value_model_init`="reward", but there is no `reward_model` with the policy\'s tokenizer. Set '
            '`value_model_init="policy"` or pass `value_model`.'
        )
    from_reward = init != "policy" and reward_model is not None
    _require_plain_weights("reward" if from_reward else "policy", reward_model if from_reward else policy)
    if from_reward:
        model = copy.deepcopy(extract_model_from_parallel(reward_model, keep_torch_compile=False))
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        model.requires_grad_(True)
    else:
        model = _build_classifier(policy)
    dtype = policy.dtype if is_frozen else _find_trained_dtype(policy)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with no_grad():
        for layer in find_score_layers(model):
            for parameter in layer.parameters():
                parameter.zero_()
    return model


def _find_trained_dtype(policy: PreTrainedModel | PeftModel) -> torch.dtype:
    """Returns the widest one. PEFT leaves a trained copy of an embedding in the dtype of the model."""
    trained = [weight.dtype for weight in policy.parameters() if weight.requires_grad and weight.is_floating_point()]
    return max(trained, key=lambda dtype: dtype.itemsize, default=policy.dtype)


def _require_plain_weights(kind: str, model: PreTrainedModel | PeftModel) -> None:
    if is_quantized(extract_model_from_parallel(model, keep_torch_compile=False)):
        raise ValueError(
            f"The value model would be a copy of the {kind} model, whose weights are quantized and cannot be trained. "
            "Pass `value_model`, a sequence classifier that is not quantized."
        )


def _build_classifier(policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    policy = extract_model_from_parallel(policy, keep_torch_compile=False)
    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    with whole_weights(), base.device:  # on a CPU, drawing weights that are replaced next would take long
        model = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    # An adapter layer holds the layer that it adapts as `base_layer`, or as `original_module` if it trains a copy.
    state = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in base.base_model.state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }
    report = model.base_model.load_state_dict(state, strict=False)
    if report.missing_keys:
        raise ValueError(
            f"The value model cannot start from the policy, a `{type(base).__name__}`: {report.missing_keys[0]} is "
            "missing. Pass `value_model`."
        )
    return model.to(base.device)


def prepare_value_model(
    value_model: PreTrainedModel, peft_config: PeftConfig | None, args: PPOConfig
) -> PreTrainedModel | PeftModel:
    """
    Prepares a value model for training in the same way as TRL's trainers prepare the policy.

    Args:
        value_model ([`~transformers.PreTrainedModel`]):
            The model. It is changed in place.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of an adapter to train. The score head is trained with it. It is not changed.
        args ([`PPOConfig`]):
            Provides `gradient_checkpointing` and `gradient_checkpointing_kwargs`.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]: The value model.
    """
    # The critic that holds it is compiled instead, with `torch_compile`.
    value_model = extract_model_from_parallel(value_model, keep_torch_compile=False)
    if args.gradient_checkpointing and value_model.supports_gradient_checkpointing:
        value_model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs or {"use_reentrant": False})
    if peft_config is not None:
        if args.gradient_checkpointing:
            value_model.enable_input_require_grads()
        # A copy, because PEFT writes the name of the base model and the found modules into a configuration.
        value_model = get_peft_model(value_model, copy.deepcopy(add_score_head(peft_config)))
    keep_trained_head_in_fp32(value_model)
    return value_model
