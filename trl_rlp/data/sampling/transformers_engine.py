"""The engine `transformers`: `generate` of a model in the same process, with one prefill for n completions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import release_memory
from datasets import Dataset, Value
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils import logging

from trl_rlp.data.batching import eval_mode, split_by_token_budget
from trl_rlp.data.sampling.sampling_call import PolicySampling, SamplingCall
from trl_rlp.data.sampling.seeds import derive_seed
from trl_rlp.data.sampling.shared_prefill import generate_samples
from trl_rlp.data.sampling.token_budget import choose_tokens_per_batch
from trl_rlp.storage.artifacts import load_policy
from trl_rlp.storage.fingerprints import weights_fingerprint
from trl_rlp.storage.whole_weights import whole_weights


logger = logging.get_logger(__name__)

SHARD_SIZE = 64
"""Prompts per shard, if the user has not set it."""


def sample_with_transformers(call: SamplingCall) -> Dataset:
    """
    Samples with `generate`, in batches of prompts of similar length.

    Args:
        call ([`SamplingCall`]):
            Arguments of [`sample_completions`].

    Returns:
        `datasets.Dataset`: Policy samples P.

    Raises:
        TypeError: If the model is not a causal LM, or has no tokenizer.
        ValueError: If an argument does not fit.
    """
    model, processing_class = _find_policy(call)
    sampling = PolicySampling(call, "transformers", model, processing_class)
    sampler = _Sampler(model, call.settings, sampling.stop_token_ids, call.tokens_per_batch)
    # `generate` would let all processes take steps together under ZeRO-3, but each works on shards of its own.
    with eval_mode(model), whole_weights():
        return sampling.run(
            sampler.draw, lambda: weights_fingerprint(model), SHARD_SIZE, tokens_per_batch=Value("int64")
        )


def _find_policy(call: SamplingCall) -> tuple[Any, Any]:
    if isinstance(call.model, torch.nn.Module) and call.processing_class is None:
        raise TypeError("`processing_class` is None, but `model` is loaded. Pass the tokenizer of the policy.")
    if isinstance(call.model, torch.nn.Module) and call.model_options:
        raise ValueError("`model_options` is set, but `model` is loaded. Pass the folder or the name of it.")
    if isinstance(call.model, torch.nn.Module):
        return call.model, call.processing_class
    model, processing_class = load_policy(call.model, **call.model_options)
    return model, call.processing_class or processing_class


class _Sampler:
    """Draws the samples of a shard, in batches within a token budget."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        settings: dict[str, Any],
        stop_token_ids: list[int],
        tokens_per_batch: int | None,
    ):
        self.model = model
        self.settings = settings
        self.tokens_per_batch = tokens_per_batch or choose_tokens_per_batch(model, settings["max_new_tokens"])
        # Greedy over noisy probabilities. With `do_sample`, all prompts of a batch would share one random generator.
        self.config = GenerationConfig(
            do_sample=False,
            max_new_tokens=settings["max_new_tokens"],
            eos_token_id=stop_token_ids or None,
            pad_token_id=stop_token_ids[0] if stop_token_ids else 0,  # masked in prompts, removed from completions
            use_cache=True,
        )
        self._has_warned = False

    def draw(
        self, rows: list[int], prompt_ids: list[list[int]], advance: Callable[[int], Any]
    ) -> tuple[list[list[list[int]]], dict[str, list]]:
        """Returns the samples of each prompt, and the token budget that each prompt was sampled with."""
        samples: dict[int, list[list[int]]] = {}
        budgets: dict[int, int] = {}
        while len(samples) < len(rows):
            batch = self._find_batch([index for index in range(len(rows)) if index not in samples], prompt_ids)
            drawn = self._try_batch([rows[index] for index in batch], [prompt_ids[index] for index in batch])
            if drawn is None:
                self._halve_budget([len(prompt_ids[index]) for index in batch])
                continue
            samples |= zip(batch, drawn.tolist(), strict=True)
            budgets |= dict.fromkeys(batch, self.tokens_per_batch)
            advance(len(batch))
        order = range(len(rows))
        return [samples[index] for index in order], {"tokens_per_batch": [budgets[index] for index in order]}

    def _find_batch(self, missing: list[int], prompt_ids: list[list[int]]) -> list[int]:
        """Returns the longest of the missing prompts that fit into one batch."""
        n, new_tokens = self.settings["num_generations"], self.settings["max_new_tokens"]
        sizes = [n * (len(prompt_ids[index]) + new_tokens) for index in missing]
        return [missing[index] for index in split_by_token_budget(sizes, self.tokens_per_batch)[0]]

    def _try_batch(self, rows: list[int], prompt_ids: list[list[int]]) -> torch.Tensor | None:
        """Returns the samples of a batch, or `None` if it does not fit into the memory of the device."""
        processors = _build_processors(self.settings, rows, self.model.device)
        try:
            samples = generate_samples(
                self.model, prompt_ids, self.settings["num_generations"], self.config, logits_processor=processors
            )
        except torch.OutOfMemoryError:
            return None
        if processors[-1].has_nan:
            raise ValueError(
                f"`model` returns NaN for a prompt of the rows {rows[:10]}, so nothing can be drawn. Check its "
                "weights. float16 overflows in many models, so load it in bfloat16 or float32."
            )
        return samples

    def _halve_budget(self, lengths: list[int]) -> None:
        """Halves the budget, or the size of the batch that did not fit, if it was smaller."""
        release_memory()
        if len(lengths) == 1:
            raise torch.OutOfMemoryError(
                f"The {self.settings['num_generations']} completions of one prompt do not fit into the memory of the "
                "device. Lower `num_generations` or `max_new_tokens`, drop the longest prompts, or choose "
                '`engine="vllm"`.'
            )
        n, new_tokens = self.settings["num_generations"], self.settings["max_new_tokens"]
        size = len(lengths) * n * (max(lengths) + new_tokens)
        self.tokens_per_batch = max(1, min(self.tokens_per_batch, size) // 2)
        if not self._has_warned:
            logger.warning(
                "A sampling batch did not fit into the memory of the device. From now on, the token budget of a batch "
                f"is halved until it fits. It is {self.tokens_per_batch} now."
            )
        self._has_warned = True


def _build_processors(settings: dict[str, Any], rows: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """Builds what changes the logits, in the order of `generate`, and what draws from them."""
    processors = LogitsProcessorList()
    if settings["temperature"] != 1:
        processors.append(TemperatureLogitsWarper(float(settings["temperature"])))
    if settings["top_k"]:
        processors.append(TopKLogitsWarper(settings["top_k"]))
    if settings["top_p"] < 1:
        processors.append(TopPLogitsWarper(settings["top_p"]))
    seeds = [derive_seed(settings["seed"], row) for row in rows]
    processors.append(PromptNoise([torch.Generator(device).manual_seed(seed) for seed in seeds]))
    return processors


class PromptNoise(LogitsProcessor):
    r"""
    Noise that makes the most probable token a random draw. Each prompt has its own random generator.

    $$\arg\max_i p_i / e_i, \quad e_i \sim \mathrm{Exponential}(1)$$

    is token i with probability p_i. `torch.multinomial` draws in the same way, but with one generator for all rows, so
    a sample would depend on the other prompts of its batch.

    Args:
        generators (`list[torch.Generator]`):
            One for each prompt of the batch, on the device of the logits.
    """

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators
        self.has_nan: bool | torch.Tensor = False  # stays on the device until the batch is done

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """
        Divides the probabilities by noise.

        Args:
            input_ids (`torch.Tensor` of shape `(prompts * num_generations, length)`):
                Tokens so far. They are not read.
            scores (`torch.Tensor` of shape `(prompts * num_generations, vocabulary)`):
                Logits.

        Returns:
            `torch.Tensor` of shape `(prompts * num_generations, vocabulary)`: Probabilities divided by noise.
        """
        noise = torch.empty_like(scores)
        for rows, generator in zip(noise.chunk(len(self.generators)), self.generators, strict=True):
            rows.exponential_(generator=generator)
        probabilities = scores.softmax(dim=-1)  # (prompts * num_generations, vocabulary)
        self.has_nan = self.has_nan | probabilities[:, 0].isnan().any()  # one NaN among the logits spreads to its row
        return probabilities.div_(noise)
