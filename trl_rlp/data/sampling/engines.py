"""Policy samples P: n completions of every prompt, from an engine that is chosen by name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.sampling.sampling_call import SamplingCall
from trl_rlp.data.sampling.server_engine import sample_from_server
from trl_rlp.data.sampling.transformers_engine import sample_with_transformers
from trl_rlp.data.sampling.vllm_engine import sample_with_vllm
from trl_rlp.data.sampling.vllm_process import require_vllm
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.data.server_client import require_openai
from trl_rlp.data.validation import require_prompts


def sample_completions(
    prompts: Dataset,
    model: PreTrainedModel | PeftModel | str | Path,
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    engine: str = "transformers",
    engine_args: dict[str, Any] | None = None,
    num_generations: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    seed: int = 0,
    tokens_per_batch: int | None = None,
    stop_token_ids: Sequence[int] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    shard_size: int | None = None,
) -> Dataset:
    """
    Samples n completions of every prompt from a policy: P of Algorithm 1, step 4.

    The engines draw from the same distribution, but not the same samples. Within an engine, the draws of a prompt
    depend on `seed` and the number of its row only, so the same arguments give the same samples, also in resumed runs
    and with several processes. A forward pass rounds a little differently in another batch, which can change single
    tokens. Most servers do not promise anything.

    The model's own `generation_config` is used for its EOS tokens only. Under `torchrun` or `accelerate launch`, every
    process calls this function, with a whole copy of the model or with vLLM on a GPU of its own. Models that are
    sharded over processes (FSDP, ZeRO-3) are not supported.

    Args:
        prompts ([`~datasets.Dataset`]):
            Column `prompt`: text, or messages with `role` and `content`. Messages get the chat template and a new
            assistant turn. If the last message is the assistant's, it is continued instead. The columns `tools` and
            `chat_template_kwargs` are optional arguments of the chat template. Other columns are kept.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`] or `str` or `Path`):
            The policy, a decoder-only causal LM: its folder or Hub name, or for the engine `"transformers"` also the
            model itself, on the device to sample on. For the engine `"server"`, its name on the server.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer. It does not need a pad token. Defaults to the tokenizer of the folder or name. The
            engine `"server"` does not read it.
        engine (`str`, *optional*, defaults to `"transformers"`):
            What draws the tokens: `"transformers"`, `"vllm"` (vLLM in a process of its own, which ends after the last
            prompt) or `"server"` (see [`sample_from_server`]).
        engine_args (`dict`, *optional*):
            Arguments of the engine. For `"vllm"`, those of `vllm.LLM`, such as `gpu_memory_utilization` and
            `tensor_parallel_size`. For `"server"`, those of [`sample_from_server`], such as `base_url`, which is
            required. For `"transformers"`, none.
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
        tokens_per_batch (`int`, *optional*):
            Token budget of a batch of the engine `"transformers"`: `num_generations` times the prompts and completions
            at their maximum length. Each batch has at least one prompt. Defaults to what fits into the free memory of
            the device, see [`choose_tokens_per_batch`], and to 8192 on the CPU. If a batch does not fit, the budget is
            halved. A resumed run may change it.
        stop_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a completion. Defaults to the tokenizer's EOS token and those of the model's generation
            config. If it is empty, all completions have `max_new_tokens` tokens, and none is finished.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template for all prompts. The samples get them as a column
            `chat_template_kwargs`, which scoring and TRL's `RewardTrainer` read.
        model_options (`dict`, *optional*):
            Options of `from_pretrained` if `model` is a folder or a name, as in [`load_policy`]. vLLM takes `dtype`,
            `revision` and `trust_remote_code` from it, and chooses its attention and its devices itself. The engine
            `"server"` does not read it.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished shards. An interrupted run resumes from it.
        shard_size (`int`, *optional*):
            Number of prompts per shard. Defaults to 256 for `"vllm"` and to 64 for the others, or to a thousandth of
            the prompts if that is more.

    Returns:
        `datasets.Dataset`: The prompts in their order, with `completions` (n texts without special tokens) and
        `finished` (n booleans: whether the completion ended with a stop token within `max_new_tokens`). A stop token
        that is not EOS is part of the text, as in TRL's trainers.

    Raises:
        ImportError: If vLLM is not installed or in a version that TRL does not support, or `openai` is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If a setting is out of range or does not fit the engine, there are no prompts, a prompt is empty or
            leaves no room for `max_new_tokens`, the tokenizer lacks the EOS token or a required chat template, or
            `output_dir` holds samples of another engine, policy, tokenizer, setting or set of prompts.
        RuntimeError: If vLLM or a server fails.

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
    }
    batching = {"tokens_per_batch": tokens_per_batch, "shard_size": shard_size}
    require_settings(**settings, **{name: value for name, value in batching.items() if value is not None})
    require_engine(engine, engine_args, tokens_per_batch)
    call = SamplingCall(
        prompts=require_prompts(prompts),
        model=model,
        processing_class=processing_class,
        settings=settings,
        engine_args=engine_args or {},
        model_options=model_options or {},
        tokens_per_batch=tokens_per_batch,
        stop_token_ids=stop_token_ids,
        chat_template_kwargs=chat_template_kwargs,
        output_dir=output_dir,
        shard_size=shard_size,
    )
    return ENGINES[engine](call)


def sample_with_server(call: SamplingCall) -> Dataset:
    """
    Samples from a server, which tokenizes the prompts and ends the completions itself.

    Args:
        call ([`SamplingCall`]):
            Arguments of [`sample_completions`]. `engine_args` are arguments of [`sample_from_server`].

    Returns:
        `datasets.Dataset`: Policy samples P.

    Raises:
        ValueError: If an argument does not fit.
    """
    settings = dict(call.settings)
    unread = {
        "chat_template_kwargs": call.chat_template_kwargs,
        "stop_token_ids": call.stop_token_ids,
        "top_k": settings.pop("top_k") or None,
    }
    for name, value in unread.items():
        if value is not None:
            raise ValueError(
                f"`{name}`={value!r} does not reach a server. Remove it, or pass `engine_args={{'extra_body': "
                f"{{'{name}': ...}}}}` if the server reads this field, as vLLM does."
            )
    arguments = {"model": str(call.model), "max_tokens": settings.pop("max_new_tokens"), **call.engine_args}
    if call.shard_size is not None:
        arguments["shard_size"] = call.shard_size
    return sample_from_server(call.prompts, **settings, output_dir=call.output_dir, **arguments)


ENGINES: dict[str, Callable[[SamplingCall], Dataset]] = {
    "transformers": sample_with_transformers,
    "vllm": sample_with_vllm,
    "server": sample_with_server,
}
"""The engines by name."""

SERVER_ARGUMENTS = ("api_key", "base_url", "extra_body", "max_concurrency", "max_retries", "model", "timeout")
"""Names in `engine_args` of the engine `server`. `model` is the policy's name on the server, if it is another one."""


def require_engine(
    engine: str, engine_args: dict[str, Any] | None = None, tokens_per_batch: int | None = None
) -> None:
    """
    Checks the choice of an engine, before any work.

    Args:
        engine (`str`):
            Name of the engine.
        engine_args (`dict`, *optional*):
            Arguments of the engine.
        tokens_per_batch (`int`, *optional*):
            Token budget of a batch.

    Raises:
        ImportError: If the package of the engine is not installed, or vLLM is in a version that TRL does not support.
        TypeError: If `engine_args` is not a mapping.
        ValueError: If the name is unknown, or an argument does not fit the engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {sorted(ENGINES)}, got {engine!r}.")
    if not isinstance(engine_args or {}, dict):
        raise TypeError(f"`engine_args` must be a mapping, got `{type(engine_args).__name__}`.")
    if tokens_per_batch is not None and engine != "transformers":
        raise ValueError(
            f"`tokens_per_batch`={tokens_per_batch} has no effect with `engine`={engine!r}, which makes its own "
            "batches. Remove it."
        )
    if engine == "transformers" and engine_args:
        raise ValueError(
            f"`engine_args` has {sorted(engine_args)}, but the engine 'transformers' has no arguments. Remove them, "
            "or choose another `engine`."
        )
    if engine == "vllm":
        require_vllm()
    if engine == "server":
        require_openai()
        unknown = sorted((engine_args or {}).keys() - set(SERVER_ARGUMENTS))
        if unknown:
            raise ValueError(
                f"`engine_args` has {unknown}, but a server has {list(SERVER_ARGUMENTS)}. Remove the others."
            )
        if "base_url" not in (engine_args or {}):
            raise ValueError(
                "`engine`='server' needs the address of the server. Pass it as `base_url` in `engine_args`, for "
                "example 'http://localhost:8000/v1'."
            )
