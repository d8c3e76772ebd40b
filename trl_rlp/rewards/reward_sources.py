"""Where rewards come from: reward models and functions, brought into the one form that TRL's rollouts call."""

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.row_scores import require_reward_model
from trl_rlp.rewards.reward_function import RewardFunction, nan_to_infinity
from trl_rlp.storage.artifacts import load_reward_model


RewardSource = str | PreTrainedModel | PeftModel | Callable[..., list[float]]


def as_list(reward_funcs: RewardSource | Sequence[RewardSource] | None) -> list[RewardSource]:
    """
    Gives further sources of rewards as a list.

    Args:
        reward_funcs (`RewardSource` or `Sequence`, *optional*):
            One, several, or none.

    Returns:
        `list`.
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
) -> list[Callable[..., list[float]]]:
    """
    Gives all sources of rewards as functions; models score through the one scoring function, EOS included.

    A reward that is NaN becomes infinite, since TRL takes NaN for the `None` of a function that has no opinion.

    Args:
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            Comes first.
        reward_funcs (`Sequence`):
            Reward models, their folders or Hub names, or functions as TRL's GRPO takes them.
        reward_processing_class (`PreTrainedTokenizerBase` or `Sequence`, *optional*):
            Tokenizer of the first model, or one for each source; functions have `None`. Without one `reward_model`
            reads the policy's tokens, and another model has the tokenizer that was saved with it.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Rows of the policy's embedding.
        eos_token_ids (`Collection[int]`):
            Token ids that end a completion.
        device:
            Where the models go.

    Returns:
        `list[Callable]`.

    Raises:
        TypeError, ValueError: if a model does not give one number, its embedding lacks tokens of the policy, or the
            tokenizers do not fit the sources.
    """
    sources = [*([] if reward_model is None else [reward_model]), *reward_funcs]
    functions = []
    for source, tokenizer in zip(sources, _one_each(reward_processing_class, sources), strict=True):
        if _is_function(source) and source is not reward_model:
            functions.append(_with_visible_nan(source))
            continue
        is_first = source is reward_model
        label = "`reward_model`" if is_first else "A model of `reward_funcs`"
        model, saved = load_reward_model(source) if isinstance(source, str) else (source, None)
        try:
            require_reward_model(model)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("`model`", label, 1)) from None
        tokenizer = tokenizer or saved or _tokenizer_of(model, is_first) or processing_class
        reads_policy_tokens = shares_token_ids(tokenizer, processing_class, vocabulary_size)
        if reads_policy_tokens:
            require_embedding(label, model, processing_class, vocabulary_size)
        name = "reward_model" if is_first else str(model.name_or_path).split("/")[-1] or "reward_model"
        options = {"name": name, "reads_policy_tokens": reads_policy_tokens, "require_finite": False}
        functions.append(RewardFunction(model.to(device), tokenizer, eos_token_ids, **options))
    return functions


def require_embedding(
    label: str, model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase, vocabulary_size: int
) -> None:
    """
    Checks that a model can read what the policy writes.

    Args:
        label (`str`):
            What the message calls the model.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward or value model.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Rows of the policy's embedding.

    Raises:
        ValueError: if its embedding is too small.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    last = max(writable_tokens(processing_class, vocabulary_size).values())
    if rows <= last:
        raise ValueError(
            f"{label} has an embedding of {rows} rows, but the policy's tokens go up to {last}. Pass a model of the "
            "policy's vocabulary, or for a reward model its own tokenizer as `reward_processing_class`."
        )


def writable_tokens(processing_class: PreTrainedTokenizerBase, vocabulary_size: int) -> dict[str, int]:
    """
    Gives the tokens that a policy may write: not its padding, nor what its embedding lacks.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.
        vocabulary_size (`int`):
            Rows of the policy's embedding.

    Returns:
        `dict[str, int]`: ids by token.
    """
    pad_token_id = None if processing_class.pad_token == processing_class.eos_token else processing_class.pad_token_id
    vocabulary = processing_class.get_vocab().items()
    return {token: i for token, i in vocabulary if i < vocabulary_size and i != pad_token_id}


def shares_token_ids(reader: PreTrainedTokenizerBase, writer: PreTrainedTokenizerBase, vocabulary_size: int) -> bool:
    """
    Says whether a model with one tokenizer can read the token ids of another.

    Args:
        reader (`PreTrainedTokenizerBase`):
            Tokenizer of the model that reads; it may have further tokens, such as a pad token of its own.
        writer (`PreTrainedTokenizerBase`):
            Tokenizer that the ids are of.
        vocabulary_size (`int`):
            Rows of the writer's embedding.

    Returns:
        `bool`: whether every token that may be written has the same id in both.
    """
    if reader is writer:
        return True
    known = reader.get_vocab()
    return all(known.get(token) == token_id for token, token_id in writable_tokens(writer, vocabulary_size).items())


def _is_function(source: RewardSource) -> bool:
    return callable(source) and not isinstance(source, nn.Module)


def _one_each(
    given: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None, sources: list[RewardSource]
) -> list[PreTrainedTokenizerBase | None]:
    """A tokenizer or `None` for each source; a single one is the first model's."""
    are_models = [not _is_function(source) for source in sources]
    if given is None:
        return [None] * len(sources)
    if not isinstance(given, (list, tuple)):
        if not any(are_models):
            raise ValueError("`reward_processing_class` is given, but no source of rewards is a model. Leave it out.")
        return [given if row == are_models.index(True) else None for row in range(len(sources))]
    if len(given) != len(sources):
        raise ValueError(
            f"`reward_processing_class` has {len(given)} entries for {len(sources)} sources of rewards. Give one for "
            "each, None for functions."
        )
    for row, (tokenizer, is_model) in enumerate(zip(given, are_models, strict=True)):
        if tokenizer is not None and not is_model:
            raise ValueError(f"`reward_processing_class` entry {row} is for a function, which has none. Make it None.")
    return list(given)


def _tokenizer_of(model: PreTrainedModel, is_first: bool) -> PreTrainedTokenizerBase | None:
    """The former trainer's reward model read the policy's tokens, whatever was saved with it."""
    if is_first or not model.name_or_path:
        return None
    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`reward_processing_class` is None for a model of `reward_funcs`, and no tokenizer could be loaded from "
            f"'{model.name_or_path}', where it comes from. Pass one. ({error})"
        ) from None


def _with_visible_nan(function: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """The same function, under the name that TRL logs it by, which says infinity where it said NaN."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func

    def scored(*args: Any, **kwargs: Any) -> list[float]:
        return nan_to_infinity(function(*args, **kwargs))

    async def scored_later(*args: Any, **kwargs: Any) -> list[float]:
        return nan_to_infinity(await function(*args, **kwargs))

    is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
    wrapped = scored_later if is_async else scored
    wrapped.__name__ = inner.__name__ if hasattr(inner, "__name__") else type(inner).__name__
    return wrapped
