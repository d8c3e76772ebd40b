"""The engine `vllm`: vLLM on the GPU of this process, with continuous batching."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file

from trl_rlp.data.sampling.sampling_call import PolicySampling, SamplingCall
from trl_rlp.data.sampling.seeds import derive_seed
from trl_rlp.data.sampling.vllm_process import VLLMProcess, find_devices, require_vllm
from trl_rlp.storage.adapters import find_adapter
from trl_rlp.storage.artifacts import (
    CAUSAL_LM,
    HUB_OPTIONS,
    explain_missing_model,
    load_complete_model,
    load_tokenizer,
    require_causal_lm,
)
from trl_rlp.storage.fingerprints import files_fingerprint, weights_fingerprint
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.precision import choose_dtype
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.whole_weights import whole_weights


SHARD_SIZE = 256
"""Prompts per shard, if the user has not set it. vLLM is less busy at the end of each shard, so it is large."""

MIN_TEMPERATURE = 0.01
"""vLLM raises lower temperatures to this one."""

OWN_ARGUMENTS = ("generation_config", "model", "skip_tokenizer_init", "tokenizer")
"""Arguments of `vllm.LLM` that the engine sets."""

PRECISION_ARGUMENTS = ("dtype", "quantization", "kv_cache_dtype")
"""Arguments of `vllm.LLM` that change the distribution of the samples, so a run is resumed with the same ones."""

INIT_ARGUMENTS = ("dtype", *HUB_OPTIONS)
"""Options of `from_pretrained` that are arguments of `vllm.LLM` too."""


def sample_with_vllm(call: SamplingCall) -> Dataset:
    """
    Samples with vLLM, in a process of its own that ends after the last shard.

    The prompts are tokenized and the completions decoded as with the engine `transformers`. vLLM only draws tokens.

    Args:
        call ([`SamplingCall`]):
            Arguments of [`sample_completions`]. `engine_args` are arguments of `vllm.LLM`.

    Returns:
        `datasets.Dataset`: Policy samples P.

    Raises:
        ImportError: If vLLM is not installed, or in a version that TRL does not support.
        TypeError: If the model is not a folder or a name.
        ValueError: If an argument does not fit.
        RuntimeError: If vLLM fails.
    """
    require_vllm()
    _require_arguments(call)
    devices = find_devices(call.engine_args.get("tensor_parallel_size", 1))
    hub_options = {name: call.model_options[name] for name in HUB_OPTIONS if name in call.model_options}
    processing_class = call.processing_class or load_tokenizer(call.model, **hub_options)
    with _find_plain_model(call.model, hub_options) as (path, hub_options, describe_policy):
        model = _load_without_weights(path, hub_options)
        sampling = PolicySampling(call, "vllm", model, processing_class)
        length = int(sampling.policy_prompts.lengths.max()) + call.settings["max_new_tokens"]
        _require_length(call.engine_args.get("max_model_len"), length)
        arguments = {
            "model": path,
            "dtype": _choose_dtype(model, call.model_options.get("dtype")),
            "max_model_len": length,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            **hub_options,
            **call.engine_args,
        }
        precision = {name: arguments[name] for name in PRECISION_ARGUMENTS if name in arguments}
        with VLLMProcess(arguments, devices) as process:
            sampler = _Sampler(process, call.settings, sampling.stop_token_ids)
            return sampling.run(sampler.draw, lambda: f"{describe_policy()} with {precision}", SHARD_SIZE)


class _Sampler:
    """Draws the samples of a shard. Each prompt has a seed of its own, and vLLM derives those of its samples."""

    def __init__(self, process: VLLMProcess, settings: dict[str, Any], stop_token_ids: list[int]):
        self.process = process
        self.seed = settings["seed"]
        self.params = {
            "n": settings["num_generations"],
            "temperature": settings["temperature"],
            "top_p": settings["top_p"],
            "top_k": settings["top_k"],
            "max_tokens": settings["max_new_tokens"],
            "stop_token_ids": stop_token_ids,
            "ignore_eos": True,  # EOS is among the stop tokens, unless the user has replaced them
            "detokenize": False,
        }

    def draw(
        self, rows: list[int], prompt_ids: list[list[int]], advance: Callable[[int], Any]
    ) -> tuple[list[list[list[int]]], dict[str, list]]:
        """Returns the samples of each prompt."""
        samples = self.process.sample(
            prompt_ids, [{**self.params, "seed": derive_seed(self.seed, row)} for row in rows]
        )
        advance(len(rows))
        return samples, {}


def _require_arguments(call: SamplingCall) -> None:
    if not isinstance(call.model, str | Path):
        raise TypeError(
            f"`model` must be a folder or a Hub name for `engine`='vllm', got `{type(call.model).__name__}`. Save it "
            "with `save_pretrained` and pass the folder, or use `engine`='transformers'."
        )
    taken = sorted({*OWN_ARGUMENTS, *INIT_ARGUMENTS} & call.engine_args.keys())
    if taken:
        raise ValueError(
            f"`engine_args` may not set {taken} for `engine`='vllm'. `dtype`, `revision` and `trust_remote_code` "
            "belong to `model_options`, and the others follow from `model`."
        )
    if call.model_options.get("quantization_config") is not None:
        raise ValueError(
            "`engine`='vllm' does not read `quantization_config`. Remove it, or name a method of vLLM, for example "
            '`engine_args={"quantization": "bitsandbytes"}`.'
        )
    if call.settings["temperature"] < MIN_TEMPERATURE:
        raise ValueError(
            f"`temperature` must be at least {MIN_TEMPERATURE} for `engine`='vllm', got "
            f"{call.settings['temperature']}. Raise it, or use `engine`='transformers'."
        )


def _require_length(max_model_len: Any, length: int) -> None:
    """Checks that vLLM does not end completions before `max_new_tokens`. It also takes text, and -1 for any length."""
    if isinstance(max_model_len, int) and 0 < max_model_len < length:
        raise ValueError(
            f"`engine_args` sets `max_model_len`={max_model_len}, but the longest prompt and `max_new_tokens` have "
            f"{length} tokens, so vLLM would cut completions. Remove it, or lower `max_new_tokens`."
        )


@contextmanager
def _find_plain_model(
    path: str | Path, hub_options: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Callable[[], str]]]:
    """
    Yields a model without adapter, its version, and a function that returns its fingerprint.

    An adapter is merged into its model, in a temporary folder. vLLM's own support of LoRA lacks the layers of
    `modules_to_save`, DoRA and high ranks.
    """
    path = expand_path(path)
    with explain_missing_model(path):
        has_adapter = find_adapter(path, hub_options.get("revision")) is not None
    if not has_adapter:
        require_causal_lm(path, **hub_options)
        yield path, hub_options, lambda: _describe_files(path, hub_options)
        return
    with tempfile.TemporaryDirectory(prefix="trl-rlp-merged-") as folder:
        model = load_complete_model(AutoModelForCausalLM, path, CAUSAL_LM, **hub_options)
        fingerprint = weights_fingerprint(model)
        model.save_pretrained(folder)
        del model
        options = {name: value for name, value in hub_options.items() if name != "revision"}
        yield folder, options, lambda: fingerprint


def _describe_files(path: str, hub_options: dict[str, Any]) -> str:
    """Returns the fingerprint of a folder, or the commit of a model on the Hub."""
    if Path(path).is_dir():
        return files_fingerprint(path)
    return Path(cached_file(path, "config.json", revision=hub_options.get("revision"))).parent.name


def _load_without_weights(path: str, hub_options: dict[str, Any]) -> PreTrainedModel:
    """Builds the model on the meta device, for its context and its EOS tokens."""
    config = AutoConfig.from_pretrained(path, **hub_options)
    with whole_weights(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=hub_options.get("trust_remote_code"))
    try:
        model.generation_config = GenerationConfig.from_pretrained(path, revision=hub_options.get("revision"))
    except OSError:  # saved without one, so `from_config` has derived it
        pass
    return model


def _choose_dtype(model: PreTrainedModel, dtype: str | torch.dtype | None) -> str:
    """Returns the dtype's name. vLLM's own `auto` would load a checkpoint in fp32 in 16 bits."""
    chosen = choose_dtype(process_state().device, dtype)
    chosen = (model.config.dtype or "auto") if chosen == "auto" else chosen
    return str(chosen).removeprefix("torch.")
