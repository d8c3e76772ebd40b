"""One call of a sampler: its arguments, and the work that all engines in this process share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.context import read_context
from trl_rlp.data.sampling.completion_text import CompletionReader
from trl_rlp.data.sampling.policy_prompts import PolicyPrompts, add_template_options
from trl_rlp.data.sampling.stop_tokens import get_eos_token_ids, require_stop_token_ids
from trl_rlp.data.template_options import TEMPLATE_COLUMNS
from trl_rlp.storage.fingerprints import dataset_fingerprint, tokenizer_fingerprint
from trl_rlp.storage.shards import choose_shard_size, map_shards


COMPLETIONS = Features({"completions": List(Value("string")), "finished": List(Value("bool"))})
"""The columns that an engine adds to the prompts."""

Draw = Callable[[list[int], list[list[int]], Callable[[int], Any]], tuple[list[list[list[int]]], dict[str, list]]]
"""
Called with the rows of a shard, the token ids of their prompts and `advance`. It returns the token ids of the samples
of each prompt, and further columns of the shard.
"""


@dataclass
class SamplingCall:
    """
    The arguments of [`sample_completions`], checked as far as no model is needed.

    Args:
        prompts ([`~datasets.Dataset`]):
            Checked prompts.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`] or `str` or `Path`):
            The policy, or its folder or name.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer.
        settings (`dict`):
            `num_generations`, `temperature`, `top_p`, `top_k`, `max_new_tokens` and `seed`.
        engine_args (`dict`):
            Arguments of the engine.
        model_options (`dict`):
            Options of `from_pretrained`.
        tokens_per_batch (`int`, *optional*):
            Token budget of a batch.
        stop_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a completion.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template for all prompts.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards.
        shard_size (`int`, *optional*):
            Number of prompts per shard.
    """

    prompts: Dataset
    model: PreTrainedModel | PeftModel | str | Path
    processing_class: PreTrainedTokenizerBase | None
    settings: dict[str, Any]
    engine_args: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    tokens_per_batch: int | None = None
    stop_token_ids: Sequence[int] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    output_dir: str | Path | None = None
    shard_size: int | None = None


class PolicySampling:
    """
    The part of a call that does not depend on what draws the tokens: prompts in, texts out, shard by shard.

    Args:
        call ([`SamplingCall`]):
            Arguments of the call.
        engine (`str`):
            Name of the engine.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy. Its weights are not read.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
    """

    def __init__(
        self,
        call: SamplingCall,
        engine: str,
        model: PreTrainedModel | PeftModel,
        processing_class: PreTrainedTokenizerBase,
    ):
        self.call = call
        self.engine = engine
        self.prompts = add_template_options(call.prompts, call.chat_template_kwargs)
        self._processing_class = processing_class
        eos_token_ids = get_eos_token_ids(model, processing_class)
        given = call.stop_token_ids
        self.stop_token_ids = eos_token_ids if given is None else require_stop_token_ids(given, model)
        self._reader = CompletionReader(processing_class, self.stop_token_ids, eos_token_ids)
        max_new_tokens = call.settings["max_new_tokens"]
        self.policy_prompts = PolicyPrompts(self.prompts, processing_class, max_new_tokens, read_context(model))

    def run(self, draw: Draw, describe_policy: Callable[[], str], shard_size: int, **notes: Value) -> Dataset:
        """
        Samples all shards.

        Args:
            draw (`Callable`):
                Draws the tokens of a shard.
            describe_policy (`Callable`):
                Returns the fingerprint of the policy. It is called only if there is an `output_dir`.
            shard_size (`int`):
                Smallest number of prompts per shard, if the user has not set it.
            notes (`Value`):
                Types of the further columns of a shard. They are saved in the shard only.

        Returns:
            `datasets.Dataset`: The prompts with `completions` and `finished`.
        """

        def sample_shard(index: int, batch: dict[str, list], advance: Callable[[int], Any]) -> dict[str, list]:
            prompt_ids = self.policy_prompts.tokenize(batch)
            samples, columns = draw(batch["row"], prompt_ids, advance)
            read = [self._reader.read(*row) for row in zip(samples, batch["prompt"], prompt_ids, strict=True)]
            completions, finished = zip(*read, strict=True)
            return {"completions": list(completions), "finished": list(finished), **columns}

        shard_size = self.call.shard_size or choose_shard_size(len(self.prompts), shard_size)
        samples = map_shards(
            self.policy_prompts.rows,
            sample_shard,
            description="Sampling",
            shards=self.policy_prompts.cut_shards(shard_size),
            output_dir=self.call.output_dir,
            fingerprint=None if self.call.output_dir is None else self._fingerprint(describe_policy(), shard_size),
            features=Features({**COMPLETIONS, **notes}),
        )
        return add_completions(self.prompts, samples)

    def _fingerprint(self, policy: str, shard_size: int) -> dict[str, Any]:
        columns = [name for name in ("prompt", *TEMPLATE_COLUMNS) if name in self.prompts.column_names]
        return {
            "engine": self.engine,
            "policy": policy,
            "tokenizer": tokenizer_fingerprint(self._processing_class),
            "prompts": dataset_fingerprint(self.prompts, columns),
            "eos_token_ids": self.stop_token_ids or None,
            **self.call.settings,
            "shard_size": shard_size,
        }


def add_completions(prompts: Dataset, samples: Dataset) -> Dataset:
    """
    Adds samples to their prompts.

    Args:
        prompts ([`~datasets.Dataset`]):
            Dataset with a column `prompt`. Existing columns `completions` and `finished` are replaced.
        samples ([`~datasets.Dataset`]):
            `completions` and `finished` of each row.

    Returns:
        `datasets.Dataset`: Policy samples P.
    """
    kept = prompts.remove_columns([name for name in COMPLETIONS if name in prompts.column_names])
    return concatenate_datasets([kept, samples.select_columns(list(COMPLETIONS))], axis=1)
