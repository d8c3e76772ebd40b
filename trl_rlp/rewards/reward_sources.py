"""Sources of rewards: converts reward models and functions to reward functions that TRL's rollouts call."""

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.row_scores import require_reward_model
from trl_rlp.rewards.reward_function import RewardFunction, replace_nan_with_infinity
from trl_rlp.storage.artifacts import load_reward_model
from trl_rlp.storage.precision import is_quantized


RewardSource = str | Path | PreTrainedModel | PeftModel | Callable[..., list[float]]


def list_reward_sources(reward_funcs: RewardSource | Sequence[RewardSource] | None) -> list[RewardSource]:
    """
    Returns the sources of rewards as a list.

    Args:
        reward_funcs (`RewardSource` or `Sequence`, *optional*):
            One source, several, or none.

    Returns:
        `list`: The sources.
    """
    if isinstance(reward_funcs, (list, tuple)):
        return list(reward_funcs)
    return [] if reward_funcs is None else [reward_funcs]


def build_reward_functions(
    reward_model: PreTrainedModel | None,
    reward_funcs: Sequence[RewardSource],
    reward_processing_class: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None,
    processing_class: PreTrainedTokenizerBase,
    vocabulary_size: int,
    eos_token_ids: Collection[int],
    device: Any,
    chat_template_kwargs: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
) -> list[Callable[..., list[float]]]:
    """
    Builds one reward function per source of rewards.

    Reward models become a [`RewardFunction`], so they score completions including EOS. A NaN reward becomes infinity.
    TRL treats NaN like `None`, which means "no reward from this function".

    A [`RewardFunction`] among the sources stays the same object with its own settings, so the trainer can scale it and
    copy its model.

    Args:
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            The first source.
        reward_funcs (`Sequence`):
            Further sources: reward models, their folders or Hub names, or reward functions as for TRL's GRPO. A
            [`RewardFunction`] with `reads_policy_tokens` must have the policy's tokens.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`] or `Sequence`, *optional*):
            Tokenizer of the first model, or one entry per source, `None` for functions. By default `reward_model`
            reads the policy's tokens, and the other models use the tokenizer that was saved with them.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Vocabulary size of the policy: the number of rows of its embedding.
        eos_token_ids (`Collection[int]`):
            Token ids that end a completion.
        device:
            Device for the models.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template.
        model_options (`dict`, *optional*):
            Further arguments of [`load_reward_model`] for models that are given by name. The tokenizer of a loaded
            model needs only `trust_remote_code`.

    Returns:
        `list[Callable]`: The reward functions, in the order of the sources.

    Raises:
        TypeError, ValueError: If a model is not a reward model, its vocabulary is too small for the policy's tokens,
            or the tokenizers do not match the sources.
    """
    sources = [*([] if reward_model is None else [reward_model]), *reward_funcs]
    functions, model_options = [], model_options or {}
    for source, tokenizer in zip(sources, _align_tokenizers(reward_processing_class, sources), strict=True):
        if isinstance(source, RewardFunction):
            _require_policy_tokens(source, processing_class, vocabulary_size)
            functions.append(source)
            continue
        if _is_function(source) and source is not reward_model:
            functions.append(_wrap_function(source))
            continue
        is_first = source is reward_model
        label = "`reward_model`" if is_first else "A model of `reward_funcs`"
        is_name = isinstance(source, str | Path)
        model, saved_tokenizer = load_reward_model(source, **model_options) if is_name else (source, None)
        try:
            require_reward_model(model)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("`model`", label, 1)) from None
        tokenizer = tokenizer or saved_tokenizer or _load_tokenizer(model, is_first, model_options) or processing_class
        reads_policy_tokens = shares_token_ids(tokenizer, processing_class, vocabulary_size)
        if reads_policy_tokens:
            require_embedding(label, model, processing_class, vocabulary_size)
        name = "reward_model" if is_first else str(model.name_or_path).split("/")[-1] or "reward_model"
        options = {"name": name, "reads_policy_tokens": reads_policy_tokens, "require_finite": False}
        options["chat_template_kwargs"] = chat_template_kwargs
        if not is_quantized(model):  # a quantized model is on its device, and may not be moved
            model.to(device)
        functions.append(RewardFunction(model, tokenizer, eos_token_ids, **options))
    return functions


def require_embedding(
    label: str, model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase, vocabulary_size: int
) -> None:
    """
    Checks that a model's vocabulary contains all tokens that the policy can generate.

    Args:
        label (`str`):
            Name of the model in the error message.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model or value model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Vocabulary size of the policy: the number of rows of its embedding.

    Raises:
        ValueError: If the model's embedding is too small.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    last_id = max(get_writable_tokens(processing_class, vocabulary_size).values())
    if rows <= last_id:
        raise ValueError(
            f"{label} has an embedding of {rows} rows, but the policy's tokens go up to {last_id}. Pass a model with "
            "the policy's vocabulary. For a reward model, you can also pass its own tokenizer as "
            "`reward_processing_class`."
        )


def get_writable_tokens(processing_class: PreTrainedTokenizerBase, vocabulary_size: int) -> dict[str, int]:
    """
    Returns the tokens that a policy can generate: all except the pad token and tokens outside its embedding.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Vocabulary size of the policy: the number of rows of its embedding.

    Returns:
        `dict[str, int]`: The id of each token.
    """
    pad_token_id = None if processing_class.pad_token == processing_class.eos_token else processing_class.pad_token_id
    vocabulary = processing_class.get_vocab().items()
    return {token: i for token, i in vocabulary if i < vocabulary_size and i != pad_token_id}


def shares_token_ids(reader: PreTrainedTokenizerBase, writer: PreTrainedTokenizerBase, vocabulary_size: int) -> bool:
    """
    Checks whether a model with one tokenizer can read the token ids of another tokenizer.

    Args:
        reader ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model that reads. It may have additional tokens, such as its own pad token.
        writer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the token ids.
        vocabulary_size (`int`):
            Vocabulary size of the model that generates the token ids: the number of rows of its embedding.

    Returns:
        `bool`: Whether every token that can be generated has the same id in both tokenizers.
    """
    if reader is writer:
        return True
    known = reader.get_vocab()
    writable = get_writable_tokens(writer, vocabulary_size)
    return all(known.get(token) == token_id for token, token_id in writable.items())


def _is_function(source: RewardSource) -> bool:
    return callable(source) and not isinstance(source, nn.Module)


def _align_tokenizers(
    given: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None, sources: list[RewardSource]
) -> list[PreTrainedTokenizerBase | None]:
    """Returns a tokenizer or `None` for each source. A single tokenizer belongs to the first model."""
    are_models = [not _is_function(source) for source in sources]
    if given is None:
        return [None] * len(sources)
    if not isinstance(given, (list, tuple)):
        if not any(are_models):
            raise ValueError("`reward_processing_class` is set, but no source of rewards is a model. Remove it.")
        return [given if row == are_models.index(True) else None for row in range(len(sources))]
    if len(given) != len(sources):
        raise ValueError(
            f"`reward_processing_class` has {len(given)} entries for {len(sources)} sources of rewards. Pass one per "
            "source, None for functions."
        )
    for row, (tokenizer, is_model) in enumerate(zip(given, are_models, strict=True)):
        if tokenizer is not None and not is_model:
            raise ValueError(
                f"`reward_processing_class` entry {row} belongs to a function, which has no tokenizer. Set it to None."
            )
    return list(given)


def _load_tokenizer(
    model: PreTrainedModel, is_first: bool, model_options: dict[str, Any]
) -> PreTrainedTokenizerBase | None:
    """
    Loads the tokenizer that was saved with a model of `reward_funcs`.

    Returns `None` for `reward_model`: as in TRL 1.12's PPOTrainer, it reads the policy's tokens.
    """
    if is_first or not model.name_or_path:
        return None
    try:
        trust_remote_code = model_options.get("trust_remote_code", False)
        return AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`reward_processing_class` is None for a model of `reward_funcs`, and its tokenizer could not be loaded "
            f"from '{model.name_or_path}'. Pass the tokenizer. ({error})"
        ) from None


def _require_policy_tokens(
    function: RewardFunction, processing_class: PreTrainedTokenizerBase, vocabulary_size: int
) -> None:
    """The critic may become a copy of the function's model, which then reads the policy's tokens."""
    if not function.reads_policy_tokens:
        return
    label = f"The reward function '{function.__name__}'"
    if not shares_token_ids(function.processing_class, processing_class, vocabulary_size):
        raise ValueError(
            f"{label} has `reads_policy_tokens`=True, but its tokenizer has other token ids than the policy's. Create "
            "it with `reads_policy_tokens=False`."
        )
    require_embedding(label, function.model, processing_class, vocabulary_size)


def _wrap_function(function: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """Wraps a reward function to return infinity instead of NaN. TRL logs it under the same name."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func

    def call(*args: Any, **kwargs: Any) -> list[float]:
        return replace_nan_with_infinity(function(*args, **kwargs))

    async def call_async(*args: Any, **kwargs: Any) -> list[float]:
        return replace_nan_with_infinity(await function(*args, **kwargs))

    is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
    wrapped = call_async if is_async else call
    wrapped.__name__ = inner.__name__ if hasattr(inner, "__name__") else type(inner).__name__
    return wrapped
