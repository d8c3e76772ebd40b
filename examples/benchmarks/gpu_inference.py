"""Sections of gpu_check.py for models that only infer: roofs, sampling, scoring and NLI."""

import copy
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from gpu_measurement import (
    DEVICE,
    IS_CUDA,
    build_llama,
    build_model,
    count_parameters,
    divide,
    free_memory,
    measure_copy_roof,
    measure_matmul_roof,
    rank_agreement,
    take_turns,
)
from ppo_step import make_tokenizer
from sampling import generate_plainly
from transformers import (
    ContinuousBatchingConfig,
    DebertaConfig,
    DebertaForSequenceClassification,
    GenerationConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trl_rlp import NLIEquivalence, score
from trl_rlp.data.sampling.shared_prefill import generate_samples
from trl_rlp.data.sampling.transformers_engine import PromptNoise
from trl_rlp.storage.precision import cast_weights


Record = Callable[[str, Any], None]

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "pyarrow", "numpy", "huggingface_hub")

SAMPLING = {
    "full": {"model": "8b", "n": 10, "prompt": 128, "new": 128, "budgets": {8192: 10, 65536: 14, 262144: 20}},
    "small": {"model": "135m", "n": 10, "prompt": 32, "new": 16, "budgets": {480: 20, 1920: 60}},
    "tiny": {"model": "tiny", "n": 2, "prompt": 8, "new": 4, "budgets": {64: 1, 128: 1, 256: 1}},
}
"""Sizes in tokens, and for each token budget the seconds to measure it in."""

SCORING = {
    "full": {"model": "8b", "rows": 128, "fp32_rows": 16, "tokens": 512, "seconds": 20},
    "small": {"model": "135m", "rows": 4, "fp32_rows": 4, "tokens": 128, "seconds": 60},
    "tiny": {"model": "tiny", "rows": 8, "fp32_rows": 8, "tokens": 16, "seconds": 2},
}

NLI = {
    "full": {"hidden_size": 1024, "layers": 24, "words": 50_265, "pairs": {64: 4096, 400: 1024}, "seconds": 11},
    "small": {"hidden_size": 384, "layers": 6, "words": 50_265, "pairs": {64: 64}, "seconds": 30},
    "tiny": {"hidden_size": 64, "layers": 1, "words": 300, "pairs": {16: 8, 40: 4}, "seconds": 1},
}
"""Sizes of the classifier, the number of pairs for each length in tokens, and the seconds for each length."""


def draw_ids(rows: int, tokens: int, words: int, seed: int = 0) -> list[list[int]]:
    """Draws token ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, words, (rows, tokens), generator=generator).tolist()


def to_text(ids: list[int]) -> str:
    """Returns text that the tokenizer of ppo_step.py reads as these ids."""
    return "".join(f"w{index - 2} " for index in ids)


def roofs(size: str, record: Record) -> None:
    record("versions", {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}})
    record("card", torch.cuda.get_device_name() if IS_CUDA else platform.processor() or platform.machine())
    if IS_CUDA:
        record("memory_gib", torch.cuda.get_device_properties(DEVICE).total_memory / 2**30)
        record("cuda", torch.version.cuda)
    for dtype in (torch.bfloat16, torch.float32):
        record(f"matmul_{str(dtype).removeprefix('torch.')}_tflops", measure_matmul_roof(dtype) / 1e12)
    record("copy_gb_per_second", measure_copy_roof() / 1e9)


# Sampling


def sampling(size: str, record: Record) -> None:
    shape = SAMPLING[size]
    model = build_llama(LlamaForCausalLM, shape["model"], torch.bfloat16 if IS_CUDA else torch.float32)
    model.generation_config = GenerationConfig(pad_token_id=0)
    bandwidth = measure_copy_roof()
    for budget, seconds in shape["budgets"].items():
        results = measure_sampling(model, shape, budget, seconds, bandwidth)
        free_memory()
        record(f"{str(model.dtype).removeprefix('torch.')}_{budget}", results)
        speed_up = divide(results["variants"], "plain", "engine")
        if speed_up is not None:  # of the largest budget that fits into the memory
            record("speed_up", speed_up)
    least = min(shape["budgets"])
    if IS_CUDA:
        results = measure_sampling(model.float(), shape, least, shape["budgets"][least], bandwidth)
        record(f"float32_{least}", results)
        model.to(torch.bfloat16)
    free_memory()
    # Last, because it may change the model's attention. With the fewest rows, because without flash attention each row
    # reads the keys of all rows.
    record("generate_batch", measure_generate_batch(model, shape, least, seconds))


def make_sampling_config(shape: dict[str, Any], new_tokens: int | None = None) -> GenerationConfig:
    """Without an EOS token, all completions have full length."""
    return GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=new_tokens or shape["new"], pad_token_id=0, eos_token_id=None
    )


def count_prompts(shape: dict[str, Any], budget: int) -> int:
    return max(1, budget // (shape["n"] * (shape["prompt"] + shape["new"])))


def measure_sampling(
    model: PreTrainedModel, shape: dict[str, Any], budget: int, seconds: float, bandwidth: float
) -> dict[str, Any]:
    """Measures one batch of prompts. A short batch of each variant is the warm-up, because a batch takes seconds."""
    ids = draw_ids(count_prompts(shape, budget), shape["prompt"], model.config.vocab_size)

    def run(generate: Callable, new_tokens: int | None = None) -> Callable[[], Any]:
        return lambda: generate(model, ids, shape["n"], make_sampling_config(shape, new_tokens))

    variants = {"engine": sample_as_engine, "plain": generate_plainly}
    short = {name: run(generate, new_tokens=2) for name, generate in variants.items()}
    results = take_turns(short, seconds=0, warm_ups=0, rounds=1)
    fitting = {name: run(variants[name]) for name, result in results.items() if "error" not in result}
    results |= take_turns(fitting, seconds=seconds, warm_ups=0, rounds=5)
    rows = len(ids) * shape["n"]
    for result in results.values():
        if "seconds" in result:
            result["tokens_per_second"] = rows * shape["new"] / result["seconds"]
            moved = shape["new"] * count_step_bytes(model, rows, shape["prompt"] + shape["new"] // 2)
            result["share_of_bandwidth"] = moved / result["seconds"] / bandwidth
    return {"prompts": len(ids), "rows": rows, "variants": results}


def sample_as_engine(model: PreTrainedModel, ids: list[list[int]], n: int, config: GenerationConfig) -> torch.Tensor:
    """Samples as the engine `transformers` does: with a shared prefill, and a random generator for each prompt."""
    greedy = copy.deepcopy(config)
    greedy.do_sample = False
    noise = PromptNoise([torch.Generator(DEVICE).manual_seed(row) for row in range(len(ids))])
    return generate_samples(model, ids, n, greedy, logits_processor=LogitsProcessorList([noise]))


def count_step_bytes(model: PreTrainedModel, rows: int, length: int) -> int:
    """Counts the bytes that a decoding step has to read: the weights once, and the keys and values of each row."""
    config = model.config
    size = model.dtype.itemsize
    head_size = config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * length
    return size * (count_parameters(model) + rows * cache)


def measure_generate_batch(
    model: PreTrainedModel, shape: dict[str, Any], budget: int, seconds: float
) -> dict[str, Any]:
    """Measures the continuous batching of transformers on the same rows."""
    ids = draw_ids(count_prompts(shape, budget), shape["prompt"], model.config.vocab_size)
    rows = [row for row in ids for _ in range(shape["n"])]
    config = make_sampling_config(shape)
    # Without a number of blocks, the cache takes most of the memory, on a CPU too.
    batching = ContinuousBatchingConfig() if IS_CUDA else ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)

    def generate_batch() -> None:
        outputs = model.generate_batch(rows, config, batching)
        errors = [output.error for output in outputs.values() if output.error is not None]
        if errors or len(outputs) < len(rows):  # it logs the error of its thread, and returns what is finished
            raise RuntimeError(f"{len(outputs)} of {len(rows)} rows were returned. Errors: {errors[:1]}")

    result = take_turns({"generate_batch": generate_batch}, seconds=seconds, warm_ups=1, rounds=2)["generate_batch"]
    if "seconds" in result:
        result["tokens_per_second"] = len(rows) * shape["new"] / result["seconds"]
    return {"rows": len(rows), **result}


# Scoring


def scoring(size: str, record: Record) -> None:
    shape = SCORING[size]
    model = build_llama(LlamaForSequenceClassification, shape["model"], torch.float32)
    tokenizer = make_tokenizer(model.config.vocab_size)
    ids = draw_ids(shape["rows"], shape["tokens"] - 1, model.config.vocab_size)
    prompts, completions = ([to_text(row[start:end]) for row in ids] for start, end in ((0, 64), (64, None)))

    def compute_scores(rows: int) -> list[float]:
        return score(model, tokenizer, prompts[:rows], completions[:rows])

    def autocast(rows: int) -> list[float]:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return compute_scores(rows)

    few, seconds = shape["fp32_rows"], shape["seconds"]
    fp32 = {"fp32": lambda: compute_scores(few), "autocast": lambda: autocast(few)}
    results = take_turns(fp32, seconds=seconds / 2)
    tokens = few * shape["tokens"]
    add_utilization(results, model, tokens, {"fp32": torch.float32, "autocast": torch.bfloat16})
    record("fp32_weights", results)
    expected, cast = compute_scores(few), autocast(few)
    cast_weights(model, torch.bfloat16)
    record("rank_agreement_autocast", rank_agreement(expected, cast))
    record("rank_agreement_bf16", rank_agreement(expected, compute_scores(few)))
    rows = [[*row, tokenizer.eos_token_id] for row in ids]
    bf16 = {
        "score": lambda: compute_scores(shape["rows"]),
        "plain_forward": lambda: run_forward(model, rows, tokens_per_batch=8192),
    }
    results = take_turns(bf16, seconds=seconds)
    add_utilization(results, model, shape["rows"] * shape["tokens"], dict.fromkeys(bf16, torch.bfloat16))
    record("bf16_weights", results)
    record("utilization", results["score"].get("utilization"))


def add_utilization(
    results: dict[str, dict], model: PreTrainedModel, tokens: int, dtypes: dict[str, torch.dtype]
) -> None:
    """Adds tokens per second, and the share that 2N FLOPs per token are of a matrix product in the same dtype."""
    for name, result in results.items():
        if "seconds" in result:
            result["tokens_per_second"] = tokens / result["seconds"]
            operations = 2 * count_parameters(model) * result["tokens_per_second"]
            result["utilization"] = operations / measure_matmul_roof(dtypes[name])


@torch.inference_mode()
def run_forward(model: PreTrainedModel, rows: list[list[int]], tokens_per_batch: int) -> list[torch.Tensor]:
    """Runs rows of one length through a model without anything else."""
    input_ids = torch.tensor(rows, device=DEVICE)  # (rows, tokens)
    batches = input_ids.split(max(1, tokens_per_batch // input_ids.shape[1]))
    return [model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits for batch in batches]


# NLI


def nli(size: str, record: Record) -> None:
    shape = NLI[size]
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(folder, shape)
        source = NLIEquivalence(folder, instruction=None)
        exact = NLIEquivalence(folder, instruction=None, dtype="float32")
        record("dtype", str(source.model.dtype))
        for tokens, pairs in shape["pairs"].items():
            record(f"pairs_of_{tokens}_tokens", measure_pairs(source, exact, shape, tokens, pairs))


def measure_pairs(
    source: NLIEquivalence, exact: NLIEquivalence, shape: dict[str, Any], tokens: int, pairs: int
) -> dict[str, Any]:
    """Measures pairs of one length. `exact` is the same classifier in fp32."""
    model = source.model
    sides = [[to_text(row) for row in draw_ids(pairs, tokens // 2, shape["words"], seed)] for seed in (1, 2)]
    rows = draw_ids(pairs, tokens, shape["words"])
    variants = {
        "classify": lambda: source.classify([""] * pairs, *sides),
        "plain_forward": lambda: run_forward(model, rows, tokens_per_batch=16384 if IS_CUDA else 512),
    }
    results = take_turns(variants, seconds=shape["seconds"])
    for result in results.values():
        if "seconds" in result:
            result["pairs_per_second"] = pairs / result["seconds"]
    dtype = torch.bfloat16 if IS_CUDA else torch.float32
    add_utilization(results, model, pairs * tokens, dict.fromkeys(variants, dtype))
    few = [[""] * min(256, pairs), *(side[:256] for side in sides)]
    same = [label == other for label, other in zip(source.classify(*few), exact.classify(*few), strict=True)]
    slowdown = divide(results, "plain_forward", "classify")
    return {
        "pairs": pairs,
        **results,
        "share_of_the_host": None if slowdown is None else 1 - slowdown,
        "labels_as_in_fp32": sum(same) / len(same),
    }


def save_classifier(folder: str, shape: dict[str, Any]) -> None:
    """Saves a random classifier with the shape of DeBERTa-large MNLI."""
    labels = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    config = DebertaConfig(
        vocab_size=shape["words"],
        hidden_size=shape["hidden_size"],
        intermediate_size=4 * shape["hidden_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["hidden_size"] // 64,
        max_position_embeddings=512,
        type_vocab_size=0,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["c2p", "p2c"],
        pad_token_id=0,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    build_model(DebertaForSequenceClassification, config, torch.float32).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = make_tokenizer(shape["words"])
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
