"""n samples of each prompt of a batch from `generate`, with the prompts read once."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel


logger = logging.getLogger(__name__)

# What models call the KV cache: the first since transformers 5.24, the second before. Delete it with support for 5.23.
CACHE_NAMES = ("cache", "past_key_values")


def generate_samples(
    model: PreTrainedModel | PeftModel,
    prompt_ids: list[list[int]],
    num_generations: int,
    generation_config: GenerationConfig,
    share_prefill: bool = True,
) -> torch.Tensor:
    """
    Gives samples of a batch of prompts, as `generate` does with `num_return_sequences`, but faster.

    `generate` copies each prompt n times and reads all copies. Here all tokens of the prompts but the last are read
    once, the KV cache is repeated n times, and `generate` goes on from it. The same state of the random generator
    gives the same samples either way, up to the rounding of the model's forward pass.

    Models whose cache is not known to hold all that was read are sampled the plain way, which is logged: a cache class
    of their own (MiniMax), states outside of the cache (RecurrentGemma, and Mamba before transformers 5.24), virtual
    tokens (PEFT prompt tuning), and any model where `Cache` does not yet describe its layers (`is_dummy`, absent in
    transformers 5.0). So are batches with a prompt of a single token, which has nothing to share.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Decoder-only policy.
        prompt_ids (`list[list[int]]`):
            Token ids of each prompt, at least one token each.
        num_generations (`int`):
            n, samples of each prompt.
        generation_config ([`~transformers.GenerationConfig`]):
            How to sample. Its `pad_token_id` must be set; the value does not matter, padding is masked.
        share_prefill (`bool`, *optional*, defaults to `True`):
            `False` samples the plain way.

    Returns:
        `torch.Tensor` of shape `(prompts, num_generations, new_tokens)`. After its EOS token a sample holds padding.

    Reference:
        Going on from a given cache: https://huggingface.co/docs/transformers/kv_cache#prefill-a-cache
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
        cache.reorder_cache(order)  # batch_repeat_interleave is missing where a layer is recurrent
    with own_settings_off(model):
        sequences = model.generate(
            input_ids=input_ids.repeat_interleave(num_generations, dim=0),
            attention_mask=attention_mask.repeat_interleave(num_generations, dim=0),
            generation_config=generation_config,
            **({} if cache is None else {_cache_name(model): cache}),
        )  # (prompts * num_generations, length + new_tokens)
    return sequences[:, input_ids.shape[1] :].unflatten(0, (len(ids), num_generations))


def _prefill(
    model: PreTrainedModel | PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_token_id: int
) -> Cache | None:
    """The cache after all tokens of each prompt but the last, which `generate` must read to have logits to start."""
    length = input_ids.shape[1] - 1
    if length < 1 or not attention_mask[:, -2].all():
        return None
    name, cache = _cache_name(model), None
    if name is not None:
        # `generate` knows each model's position ids and masks; the token that it adds, greedily, is thrown away.
        one_token = GenerationConfig(
            max_new_tokens=1, do_sample=False, pad_token_id=pad_token_id, return_dict_in_generate=True, use_cache=True
        )
        with own_settings_off(model):
            cache = model.generate(
                input_ids=input_ids[:, :-1], attention_mask=attention_mask[:, :-1], generation_config=one_token
            )[name]
    if cache is None or not _holds_all(cache, length):
        name = type(_base_model(model)).__name__
        logger.info("%s is sampled without sharing the prefill: its cache cannot be repeated.", name)
        return None
    return cache


def _cache_name(model: PreTrainedModel | PeftModel) -> str | None:
    parameters = inspect.signature(_base_model(model).forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


def _holds_all(cache: Cache, length: int) -> bool:
    """Whether each layer that keeps a state has read `length` tokens; a recurrent one says only that it has read."""
    if type(cache) is not DynamicCache or not hasattr(cache, "is_dummy"):
        return False
    kinds = enumerate(zip(cache.layers, cache.is_linear, cache.is_dummy, strict=True))
    return all(
        is_dummy or (cache.has_previous_state(index) if is_linear else layer.get_seq_length() == length)
        for index, (layer, is_linear, is_dummy) in kinds
    )


@contextmanager
def own_settings_off(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """
    Keeps `generate` from filling what its config leaves open from the model's own: top-k, penalties, EOS.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Its `generation_config` is set back afterwards.
    """
    owners = [owner for owner in dict.fromkeys([model, _base_model(model)]) if "generation_config" in vars(owner)]
    configs = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config


def _base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
