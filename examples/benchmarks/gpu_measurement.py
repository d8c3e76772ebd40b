"""
Measurements that the sections of gpu_check.py share: times in turns, memory, roofs, and random models on the device.

Sizes and models come from here, so that all sections measure the same shapes.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel


IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")
CLOCK = time.perf_counter if IS_CUDA else time.process_time
"""On a CPU, processor time, which other programs hardly change."""

MODELS = {
    "8b": {"hidden": 4096, "intermediate": 14336, "layers": 32, "heads": 32, "kv_heads": 8, "words": 128_256},
    "1b": {"hidden": 2048, "intermediate": 8192, "layers": 16, "heads": 32, "kv_heads": 8, "words": 32_000},
    "135m": {"hidden": 576, "intermediate": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "words": 49_152},
    "tiny": {"hidden": 64, "intermediate": 128, "layers": 2, "heads": 2, "kv_heads": 1, "words": 300},
    "few_words": {"hidden": 64, "intermediate": 128, "layers": 2, "heads": 2, "kv_heads": 1, "words": 8},
}
"""
Shapes of random Llamas: those of Llama 3.1 8B, of Llama 3.2 1B with a smaller vocabulary, of SmolLM2-135M for one core
of a CPU, and two tiny ones. With few words, EOS is sampled often, so that completions are finished.
"""


def build_llama(model_class: type[PreTrainedModel], name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Builds a random Llama of `MODELS` directly on the device."""
    shape = MODELS[name]
    config = LlamaConfig(
        vocab_size=shape["words"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        max_position_embeddings=8192,
        num_labels=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return build_model(model_class, config, dtype)


def build_model(model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Builds a random model directly on the device, because drawing the weights of 8B on a CPU takes minutes."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with DEVICE:
            return model_class(config).eval()
    finally:
        torch.set_default_dtype(default)


def count_parameters(model: PreTrainedModel) -> int:
    """Counts the parameters that take part in matrix products: N in 2N and 6N FLOPs per token."""
    return model.num_parameters(exclude_embeddings=True)


def synchronize() -> None:
    if IS_CUDA:
        torch.cuda.synchronize()


def free_memory() -> None:
    """Frees what no variable holds any more, so that the next measurement has the whole memory."""
    gc.collect()
    if IS_CUDA:
        torch.cuda.empty_cache()


def measure_seconds(work: Callable[[], Any]) -> float:
    synchronize()
    begin = CLOCK()
    work()
    synchronize()
    return CLOCK() - begin


def start_cublas() -> None:
    """Makes cuBLAS take its workspaces, one for this thread and one for backward passes. They are never freed."""
    layer = torch.nn.Linear(8, 8, device=DEVICE)
    layer(torch.ones(1, 8, device=DEVICE)).sum().backward()


def measure_peak_gib() -> float | None:
    """Returns the largest memory allocated on the GPU since the last call, in GiB, and starts again."""
    if not IS_CUDA:
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def take_turns(
    variants: dict[str, Callable[[], Any]],
    seconds: float,
    warm_ups: int = 3,
    rounds: int = 5,
    measure: Callable[[Callable[[], Any]], float] = measure_seconds,
) -> dict[str, dict[str, Any]]:
    """
    Runs all variants in turns, with rotating order, until all rounds are done or the next one would take too long.

    If time allows less than all rounds, at least half of them are measured, and the earlier ones are warm-ups. A
    variant that fails is left out of the later rounds. Its error is its result. `measure` runs a variant and returns
    its seconds.

    Returns the median of the measured `seconds`, all `times`, the number of `warm_ups` and the peak memory in GiB.
    What the other variants hold, such as models and optimizers, is part of the peak.
    """
    results: dict[str, dict[str, Any]] = {name: {"times": [], "peak_gib": None} for name in variants}
    begin = time.perf_counter()
    for number in range(warm_ups + rounds):
        names = [name for name in variants if "error" not in results[name]]
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            run_once(variants[name], results[name], measure)
        elapsed = time.perf_counter() - begin
        if elapsed * (number + 2) / (number + 1) > seconds:
            break
    skipped = min(warm_ups, (number + 1) // 2)
    for result in results.values():
        result["times"] = result["times"][skipped:]
        if "error" not in result:
            result |= {"seconds": statistics.median(result["times"]), "warm_ups": skipped}
    return results


def run_once(work: Callable[[], Any], result: dict[str, Any], measure: Callable[..., float]) -> None:
    """Adds the time, the peak memory or the error of one run to the result of a variant."""
    measure_peak_gib()
    try:
        result["times"].append(measure(work))
    except Exception as error:  # out of memory, or an engine that this version of transformers lacks
        result["error"] = f"{type(error).__name__}: {error}"[:500]
    if "error" in result:
        free_memory()  # not in the handler, where the error still holds its tensors
    result["peak_gib"] = max(filter(None, (result["peak_gib"], measure_peak_gib())), default=None)


def divide(results: dict[str, dict[str, Any]], name: str, base: str) -> float | None:
    """Returns the median over rounds of the time of `name` divided by that of `base`. `None` if one of them failed."""
    if "error" in results[name] or "error" in results[base]:
        return None
    pairs = zip(results[name]["times"], results[base]["times"], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def measure_matmul_roof(dtype: torch.dtype = torch.bfloat16) -> float:
    """Measures the floating-point operations per second of a large matrix product of random numbers."""
    size = 8192 if IS_CUDA else 1024
    left, right = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    measured = take_turns({"matmul": lambda: left @ right}, seconds=5, warm_ups=3, rounds=10)
    return 2 * size**3 / measured["matmul"]["seconds"]


def measure_copy_roof() -> float:
    """Measures the memory bandwidth of a large copy in bytes per second, read and written bytes together."""
    source = torch.empty(2**32 if IS_CUDA else 2**27, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    measured = take_turns({"copy": lambda: target.copy_(source)}, seconds=5, warm_ups=3, rounds=10)
    return 2 * source.numel() / measured["copy"]["seconds"]


def rank_agreement(first: list[float], second: list[float]) -> float:
    """Computes Spearman's rank correlation of two lists without ties."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (first, second)]  # (rows,) each
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()
