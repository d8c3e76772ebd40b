"""Sampling n completions per prompt with one prefill for all of them."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel


logger = logging.getLogger(__name__)

# Names of the KV cache argument: the first since transformers 5.24, the second before. Delete the second when support
# for 5.23 ends.
CACHE_NAMES = ("cache", "past_key_values")


def generate_samples(
    model: PreTrainedModel | PeftModel,
    prompt_ids: list[list[int]],
    num_generations: int,
    generation_config: GenerationConfig,
    share_prefill: bool = True,
    logits_processor: LogitsProcessorList | None = None,
) -> torch.Tensor:
    """
    Samples completions of a batch of prompts, like `generate` with `num_return_sequences`, but faster.

    `generate` copies each prompt n times and runs the model on all copies. This function:

    1. runs the model once on each prompt without its last token,
    2. repeats the KV cache n times,
    3. continues from the cache with `generate`.

    With the same random state, both ways give the same samples, up to rounding in the forward pass.

    The function falls back to plain `generate`, and logs it, if the cache may not hold the whole prompt:

    - the model has its own cache class (MiniMax),
    - states are outside the cache (RecurrentGemma, and Mamba before transformers 5.24),
    - there are virtual tokens (PEFT prompt tuning),
    - `Cache` does not describe its layers yet (`is_linear` is missing in transformers 5.0).

    It also does so, without a log message, if a prompt has only one token, because then there is nothing to share.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Decoder-only policy.
        prompt_ids (`list[list[int]]`):
            Token ids of each prompt, at least one token per prompt.
        num_generations (`int`):
            n, the number of samples per prompt.
        generation_config ([`~transformers.GenerationConfig`]):
            Sampling settings. `pad_token_id` must be set. Its value does not matter, because padding is masked.
        share_prefill (`bool`, *optional*, defaults to `True`):
            Whether to share the prefill. `False` uses plain `generate`.
        logits_processor ([`~transformers.LogitsProcessorList`], *optional*):
            Further processors of the logits.

    Returns:
        `torch.Tensor` of shape `(prompts, num_generations, new_tokens)`: Samples, padded after their EOS token.

    Reference:
        Generation from an existing cache: [Prefill a
        cache](https://huggingface.co/docs/transformers/kv_cache#prefill-a-cache).
    """
    pad_token_id = generation_config.pad_token_id
    ids = [torch.tensor(row) for row in prompt_ids]
    input_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_token_id, padding_side="left")
    attention_mask = nn.utils.rnn.pad_sequence(
        [torch.ones_like(row) for row in ids], batch_first=True, padding_side="left"
    )
    input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)  # (prompts, length)
    cache = _prefill(model, input_ids, attention_mask, pad_token_id) if share_prefill else None
    if cache is not None:
        order = torch.arange(len(ids), device=model.device).repeat_interleave(num_generations)
        cache.reorder_cache(order)  # recurrent layers have no batch_repeat_interleave
    with default_generation_config(model):
        sequences = model.generate(
            input_ids=input_ids.repeat_interleave(num_generations, dim=0),
            attention_mask=attention_mask.repeat_interleave(num_generations, dim=0),
            generation_config=generation_config,
            logits_processor=logits_processor,
            **({} if cache is None else {_find_cache_name(model): cache}),
        )  # (prompts * num_generations, length + new_tokens)
    return sequences[:, input_ids.shape[1] :].unflatten(0, (len(ids), num_generations))


def _prefill(
    model: PreTrainedModel | PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_token_id: int
) -> Cache | None:
    """
    Returns the cache after each prompt without its last token, or `None` if the cache cannot be shared.

    `generate` reads the last token itself, because it needs logits to start from.
    """
    length = input_ids.shape[1] - 1
    if length < 1 or not attention_mask[:, -2].all():
        return None
    name, cache = _find_cache_name(model), None
    if name is not None:
        # `generate` builds the position ids and masks of every model. The greedy token that it adds is not used.
        one_token = GenerationConfig(
            max_new_tokens=1, do_sample=False, pad_token_id=pad_token_id, return_dict_in_generate=True, use_cache=True
        )
        with default_generation_config(model):
            cache = model.generate(
                input_ids=input_ids[:, :-1], attention_mask=attention_mask[:, :-1], generation_config=one_token
            )[name]
    if cache is None or not _is_complete(cache, length):
        name = type(_get_base_model(model)).__name__
        logger.info("%s is sampled without sharing the prefill: its cache cannot be repeated.", name)
        return None
    return cache


def _find_cache_name(model: PreTrainedModel | PeftModel) -> str | None:
    parameters = inspect.signature(_get_base_model(model).forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


def _is_complete(cache: Cache, length: int) -> bool:
    """
    Checks whether each layer with a state has read `length` tokens.

    A recurrent layer does not count tokens, so it only has to have a state.
    """
    if type(cache) is not DynamicCache or not hasattr(cache, "is_linear"):
        return False
    # transformers 5.17 does not name layers without a state. They have read no tokens, so the check fails for them.
    dummies = cache.is_dummy if hasattr(cache, "is_dummy") else [False] * len(cache.layers)
    kinds = enumerate(zip(cache.layers, cache.is_linear, dummies, strict=True))
    return all(
        is_dummy or (cache.has_previous_state(index) if is_linear else layer.get_seq_length() == length)
        for index, (layer, is_linear, is_dummy) in kinds
    )


@contextmanager
def default_generation_config(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """
    Replaces the model's own generation config by the default one, and restores it afterwards.

    `generate` takes every setting that its `generation_config` argument leaves open from the model's own config, for
    example top-k, penalties and EOS tokens.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to generate with.
    """
    owners = [owner for owner in dict.fromkeys([model, _get_base_model(model)]) if "generation_config" in vars(owner)]
    configs = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config


def _get_base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
