"""Policy samples P (n completions of every prompt) from a transformers model in the same process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset, List, Value
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode, split_by_token_budget
from trl_rlp.data.context import read_context
from trl_rlp.data.sampling.shared_prefill import generate_samples
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.template_options import list_template_options
from trl_rlp.data.turns import ends_with_assistant, prompt_token_ids
from trl_rlp.data.validation import require_prompts
from trl_rlp.storage.fingerprints import tokenizer_fingerprint, value_fingerprint, weights_fingerprint
from trl_rlp.storage.shards import Record, cut_shards, work_in_shards


Prompt = str | list[dict[str, str]]


def sample_completions(
    prompts: Dataset,
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    num_generations: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    seed: int = 0,
    tokens_per_batch: int = 8192,
    stop_token_ids: Sequence[int] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    shard_size: int = 64,
) -> Dataset:
    """
    Samples n completions of every prompt from a policy: P of Algorithm 1, step 4.

    The model reads each prompt once for its n samples, see [`generate_samples`]. Prompts are sorted by length and
    split into shards, longest first. Each shard has its own random generator, so the same arguments give the same
    samples. Resumed runs and runs with several processes give the same samples too.

    The model's own `generation_config` is used for its EOS tokens only. Under `torchrun` or `accelerate launch`, every
    process calls this function with a whole copy of the model. Models that are sharded over processes (FSDP, ZeRO-3)
    are not supported.

    Args:
        prompts ([`~datasets.Dataset`]):
            Column `prompt`: text, or messages with `role` and `content`. Messages get the chat template and a new
            assistant turn. If the last message is the assistant's, it is continued instead. The columns `tools` and
            `chat_template_kwargs` are optional arguments of the chat template. Other columns are kept.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, a decoder-only causal LM, on the device to sample on.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer. It does not need a pad token.
        num_generations (`int`, *optional*, defaults to `10`):
            n in the paper: completions per prompt, at least 2.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits. Above 0.
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass to sample from, in (0, 1]. 1 samples from the whole distribution.
        top_k (`int`, *optional*, defaults to `0`):
            Number of tokens to sample from. 0 samples from all tokens.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Maximum length of a completion, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws. PyTorch's global random state does not change.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Token budget of a batch: `num_generations` times the prompts and completions at their maximum length. Each
            batch has at least one prompt. The samples depend on this setting, because the prompts of a batch are drawn
            together.
        stop_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a completion. Defaults to the tokenizer's EOS token and those of the model's generation
            config. If it is empty, all completions have `max_new_tokens` tokens, and none is finished.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template for all prompts. The samples get them as a column
            `chat_template_kwargs`, which scoring and TRL's `RewardTrainer` read.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards. An interrupted run resumes from it.
        shard_size (`int`, *optional*, defaults to `64`):
            Number of prompts per shard.

    Returns:
        `datasets.Dataset`: The prompts in their order, with `completions` (n texts without special tokens) and
        `finished` (n booleans: whether the completion ended with a stop token within `max_new_tokens`). A stop token
        that is not EOS is part of the text, as in TRL's trainers.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a setting is out of range, there are no prompts, a prompt is empty or leaves no room for
            `max_new_tokens`, the tokenizer lacks the EOS token or a required chat template, or `output_dir` holds
            samples of another policy, tokenizer, setting or set of prompts.

    Reference:
        Algorithm 1 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279): n = 10, temperature 1.0.

    Example:

    ```python
    >>> samples = sample_completions(Dataset.from_dict({"prompt": ["2 + 2 ="]}), model, tokenizer, num_generations=2)
    >>> samples[0]
    {'prompt': '2 + 2 =', 'completions': [' 4', ' 5.'], 'finished': [True, True]}
    ```
    """
    settings = {
        "num_generations": num_generations,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "tokens_per_batch": tokens_per_batch,
        "shard_size": shard_size,
    }
    require_settings(**settings)
    prompts = require_prompts(prompts)
    prompts = _add_template_options(prompts, chat_template_kwargs)
    texts, options = prompts["prompt"][:], list_template_options(prompts)
    eos_token_ids = get_eos_token_ids(model, processing_class)
    stops = eos_token_ids if stop_token_ids is None else list(stop_token_ids)
    prompt_ids = _tokenize_prompts(texts, options, processing_class, max_new_tokens, model)
    config = _build_generation_config(settings, stops)
    rendered = texts if options is None else [texts, options]
    fingerprint = (
        None if output_dir is None else _build_fingerprint(model, processing_class, rendered, config, settings)
    )
    sampler = _Sampler(model, processing_class, texts, prompt_ids, stops, eos_token_ids, config, settings)
    shards = cut_shards(sorted(range(len(texts)), key=lambda row: -len(prompt_ids[row])), shard_size)
    with eval_mode(model):
        records = work_in_shards(
            shards, sampler.sample_shard, description="Sampling", output_dir=output_dir, fingerprint=fingerprint
        )
    return add_completions(prompts, records)


@dataclass(frozen=True)
class _Sampler:
    """Samples the completions of a shard of prompts."""

    model: PreTrainedModel | PeftModel
    processing_class: PreTrainedTokenizerBase
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    stop_token_ids: list[int]
    eos_token_ids: list[int]
    config: GenerationConfig
    settings: dict[str, Any]

    def sample_shard(self, index: int, rows: list[int], advance: Callable[[int], Any]) -> list[Record]:
        records = {}
        with _seed_shard(self.settings["seed"], index, self.model):
            for batch in _build_batches(rows, self.prompt_ids, self.settings):
                batch_ids = [self.prompt_ids[row] for row in batch]
                samples = generate_samples(self.model, batch_ids, self.settings["num_generations"], self.config)
                for row, tokens in zip(batch, samples.tolist(), strict=True):
                    records[row] = self._build_record(tokens, row)
                advance(len(batch))
        return [records[row] for row in rows]

    def _build_record(self, samples: list[list[int]], row: int) -> Record:
        prompt, prompt_ids = self.prompts[row], self.prompt_ids[row]
        return _build_record(
            samples, prompt, prompt_ids, self.stop_token_ids, self.eos_token_ids, self.processing_class
        )


def _add_template_options(prompts: Dataset, chat_template_kwargs: dict[str, Any] | None) -> Dataset:
    """Adds the arguments of the chat template to each row. The arguments of a row take precedence."""
    if not chat_template_kwargs or isinstance(prompts[0]["prompt"], str):
        return prompts
    name = "chat_template_kwargs"
    if name not in prompts.column_names:
        return prompts.add_column(name, [chat_template_kwargs] * len(prompts))
    rows = [{**chat_template_kwargs, **(row or {})} for row in prompts[name]]
    return prompts.remove_columns(name).add_column(name, rows)


def add_completions(prompts: Dataset, records: list[Record]) -> Dataset:
    """
    Adds samples to their prompts.

    Args:
        prompts ([`~datasets.Dataset`]):
            Dataset with a column `prompt`. Existing columns `completions` and `finished` are replaced.
        records (`list[dict]`):
            `completions` and `finished` of each row.

    Returns:
        `datasets.Dataset`: Policy samples P.
    """
    samples = prompts.remove_columns([name for name in ("completions", "finished") if name in prompts.column_names])
    for name, kind in (("completions", "string"), ("finished", "bool")):
        column = [record[name] for record in records]
        samples = samples.add_column(name, column, feature=List(Value(kind)))
    return samples


def get_eos_token_ids(model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase) -> list[int]:
    """
    Returns the tokens that end a completion: the tokenizer's EOS token and those of the model's generation config.

    Training appends the tokenizer's EOS token, so it ends a completion even if the generation config does not name it.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.

    Returns:
        `list[int]`: Token ids, the tokenizer's EOS token first.

    Raises:
        TypeError: If the model cannot generate.
        ValueError: If the model is an encoder-decoder, or the tokenizer lacks an EOS token.
    """
    # torch.compile wraps a model in another class.
    is_module = isinstance(model, torch.nn.Module)
    unwrapped = extract_model_from_parallel(model, keep_torch_compile=False) if is_module else model
    if not isinstance(unwrapped, PreTrainedModel | PeftModel) or not unwrapped.can_generate():
        raise TypeError(
            f"`model` must be a causal LM, got `{type(model).__name__}`. Load it with "
            "`AutoModelForCausalLM.from_pretrained`."
        )
    if model.config.is_encoder_decoder:
        raise ValueError("`model` is an encoder-decoder, but a policy must be a decoder-only causal LM. Pass one.")
    if processing_class.eos_token_id is None:
        raise ValueError("`processing_class` has no EOS token, so no completion could end. Set its `eos_token`.")
    model_ids = model.generation_config.eos_token_id
    model_ids = [] if model_ids is None else model_ids if isinstance(model_ids, list) else [model_ids]
    return list(dict.fromkeys([processing_class.eos_token_id, *model_ids]))


def _build_generation_config(settings: dict[str, Any], stop_token_ids: list[int]) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        top_k=settings["top_k"],
        max_new_tokens=settings["max_new_tokens"],
        eos_token_id=stop_token_ids or None,
        pad_token_id=stop_token_ids[0] if stop_token_ids else 0,  # masked in prompts and removed from completions
        use_cache=True,
    )


def _build_fingerprint(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    prompts: list,
    generation_config: GenerationConfig,
    settings: dict[str, Any],
) -> dict[str, Any]:
    return {
        "policy": weights_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(processing_class),
        "prompts": value_fingerprint(prompts),
        "eos_token_ids": generation_config.eos_token_id,
        **settings,
    }


def _tokenize_prompts(
    prompts: list[Prompt],
    options: list[dict[str, Any]] | None,
    processing_class: PreTrainedTokenizerBase,
    max_new_tokens: int,
    model: PreTrainedModel | PeftModel,
) -> list[list[int]]:
    """Tokenizes the prompts and checks that each leaves room for a completion."""
    options = [{}] * len(prompts) if options is None else options
    prompt_ids = [
        prompt_token_ids(prompt, processing_class, **kwargs) for prompt, kwargs in zip(prompts, options, strict=True)
    ]
    context = read_context(model)
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise ValueError(f"`prompts` row {row} has no tokens. Drop it with `Dataset.filter`.")
        if context is not None and len(ids) + max_new_tokens > context:
            raise ValueError(
                f"`prompts` row {row} has {len(ids)} tokens. With `max_new_tokens`={max_new_tokens} this is more than "
                f"the model's context of {context}. Lower `max_new_tokens`, or shorten or drop the prompt."
            )
    return prompt_ids


def _build_batches(rows: list[int], prompt_ids: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
    sizes = [settings["num_generations"] * (len(prompt_ids[row]) + settings["max_new_tokens"]) for row in rows]
    return [[rows[index] for index in batch] for batch in split_by_token_budget(sizes, settings["tokens_per_batch"])]


def _build_record(
    samples: list[list[int]],
    prompt: Prompt,
    prompt_ids: list[int],
    stop_token_ids: list[int],
    eos_token_ids: list[int],
    processing_class: PreTrainedTokenizerBase,
) -> Record:
    """Decodes each sample up to its first stop token. EOS itself is removed, another stop token stays in the text."""
    stops = [next((index for index, token in enumerate(ids) if token in stop_token_ids), None) for ids in samples]
    ends = [
        stop if stop is None or ids[stop] in eos_token_ids else stop + 1
        for ids, stop in zip(samples, stops, strict=True)
    ]
    # A completion that opens a new turn follows no text.
    is_continuation = isinstance(prompt, str) or ends_with_assistant(prompt)
    previous_ids = prompt_ids if is_continuation else []
    texts = [
        _decode_continuation(previous_ids, ids[:end], processing_class) for ids, end in zip(samples, ends, strict=True)
    ]
    return {"completions": texts, "finished": [stop is not None for stop in stops]}


def _decode_continuation(previous_ids: list[int], ids: list[int], processing_class: PreTrainedTokenizerBase) -> str:
    """
    Decodes the text that `ids` add to the text of `previous_ids`.

    SentencePiece would drop the white space before `ids` if they were decoded alone.
    """

    def decode(tokens: list[int]) -> str:
        return processing_class.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    previous_text, text = decode(previous_ids), decode([*previous_ids, *ids])
    return text[len(previous_text) :] if text.startswith(previous_text) else decode(ids)


@contextmanager
def _seed_shard(seed: int, shard: int, model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Seeds PyTorch's random generators by the seed and the shard alone, and restores their states afterwards."""
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("cpu")}
    device_type = next(iter(devices)).type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=device_type):
        torch.manual_seed(int(np.random.SeedSequence([seed, shard]).generate_state(1, np.uint64)[0]))
        yield
