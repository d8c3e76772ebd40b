"""Where rewards come from: reward models and functions, brought into the one form that TRL's rollouts call."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.row_scores import require_reward_model
from trl_rlp.trainer.artifacts import load_reward_model
from trl_rlp.trainer.reward_function import RewardFunction


RewardSource = str | PreTrainedModel | PeftModel | Callable[..., list[float]]


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
