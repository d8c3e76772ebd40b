"""Sections of gpu_check.py that train: reward steps, PPO rollouts, and memory and waits of a tiny Algorithm 1."""

import argparse
import collections
import contextlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from gpu_inference import draw_ids, make_sampling_config, sample_as_engine, to_text
from gpu_measurement import (
    IS_CUDA,
    MODELS,
    build_llama,
    count_parameters,
    divide,
    free_memory,
    measure_matmul_roof,
    measure_peak_gib,
    start_cublas,
    synchronize,
    take_turns,
)
from ppo_step import make_tokenizer
from reward_step import make_texts, make_trainers, measure_step
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_rlp import PPOConfig, PPOTrainer, RLPConfig, run_rlp, score
from trl_rlp.storage.run_folder import RunFolder


Record = Callable[[str, Any], None]

REWARD = {
    "full": {"hidden_size": 2048, "layers": 20, "batch": 8, "tokens": 1024, "seconds": 22},
    "small": {"hidden_size": 576, "layers": 12, "batch": 4, "tokens": 64, "seconds": 120},
    "tiny": {"hidden_size": 64, "layers": 1, "batch": 2, "tokens": 9, "seconds": 2},
}
REWARD_VARIANTS = {"trl": 1, "none": 1, "trl_same_tokens": 2, "uml": 2, "uml_apart": 2}
"""Trainers of reward_step.py, and how many times the tokens of the pairs each of them trains on."""

PPO = {
    "full": {"model": "1b", "prompt": 128, "completion": 128, "micro_batch": 16, "micro_batches": 4, "seconds": 42},
    "small": {"model": "tiny", "prompt": 32, "completion": 16, "micro_batch": 8, "micro_batches": 2, "seconds": 60},
    "tiny": {"model": "tiny", "prompt": 8, "completion": 4, "micro_batch": 8, "micro_batches": 1, "seconds": 1},
}
EPOCHS = 2
ROLLOUTS = 2


def reward(size: str, record: Record) -> None:
    """Measures a training step of a reward model of about 1B parameters, with the trainers of reward_step.py."""
    shape, dtype = REWARD[size], torch.bfloat16 if IS_CUDA else torch.float32
    roof = measure_matmul_roof(dtype)
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(folder, argparse.Namespace(**shape), tuple(REWARD_VARIANTS), dtype)
        variants = {name: lambda trainer=trainer: measure_step(trainer) for name, trainer in trainers.items()}
        # A trainer measures its step itself, without the preparation of each call of `train`.
        results = take_turns(variants, seconds=shape["seconds"], measure=lambda step: step())
    for name, result in results.items():
        if "seconds" in result:
            tokens = REWARD_VARIANTS[name] * 2 * shape["batch"] * shape["tokens"]
            operations = 6 * count_parameters(trainers[name].model) * tokens
            result |= {"tokens": tokens, "utilization": operations / result["seconds"] / roof}
    record("steps", results)
    record("none / trl", divide(results, "none", "trl"))
    record("uml_joint / trl_same_tokens", divide(results, "uml", "trl_same_tokens"))
    record("uml_apart / trl_same_tokens", divide(results, "uml_apart", "trl_same_tokens"))


# PPO and GRPO


class PhaseClock(TrainerCallback):
    """
    Measures the phases of each rollout: `generation`, `evaluation` (rewards, and models that run without gradients)
    and `optimization` (from the first forward pass with gradients to the last optimizer step).
    """

    def __init__(self, policy: LlamaForCausalLM):
        self.rollouts: list[dict[str, float]] = []
        self._generate, policy.generate = policy.generate, self._measure_generation
        policy.model.register_forward_pre_hook(self._begin_optimization)

    def _read(self) -> float:
        synchronize()
        return time.perf_counter()

    def _measure_generation(self, **kwargs):
        begin = self._read()
        output = self._generate(**kwargs)
        self._end = self._read()
        self.rollouts.append({"generation": self._end - begin})
        return output

    def _begin_optimization(self, *arguments) -> None:
        if torch.is_grad_enabled() and "evaluation" not in self.rollouts[-1]:
            self._begin = self._read()
            self.rollouts[-1]["evaluation"] = self._begin - self._end

    def on_step_end(self, args, state, control, **kwargs):
        self.rollouts[-1]["optimization"] = self._read() - self._begin


def reward_length(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """Any reward without a model, so that the phases of both trainers hold the same work."""
    return [len(set(ids)) / len(ids) for ids in completion_ids]


def make_ppo_trainer(folder: str, shape: dict[str, Any], policy: LlamaForCausalLM, settings: dict) -> PPOTrainer:
    config = PPOConfig(
        folder,
        response_length=shape["completion"],
        num_ppo_epochs=EPOCHS,
        max_steps=ROLLOUTS + 1,
        stop_token=None,
        num_sample_generations=0,
        **settings,
    )
    return PPOTrainer(
        config,
        make_tokenizer(policy.config.vocab_size),
        policy,
        train_dataset=make_prompts(shape, config.num_generations),
        reward_funcs=reward_length,
    )


def make_grpo_trainer(folder: str, shape: dict[str, Any], policy: LlamaForCausalLM, settings: dict) -> GRPOTrainer:
    config = GRPOConfig(
        folder,
        max_completion_length=shape["completion"],
        num_iterations=EPOCHS,
        max_steps=EPOCHS * (ROLLOUTS + 1),
        num_generations=8,
        **settings,
    )
    return GRPOTrainer(
        policy,
        reward_length,
        config,
        train_dataset=make_prompts(shape, config.num_generations),
        processing_class=make_tokenizer(policy.config.vocab_size),
    )


def make_prompts(shape: dict[str, Any], num_generations: int) -> Dataset:
    count = (ROLLOUTS + 1) * shape["micro_batch"] * shape["micro_batches"] // num_generations
    return Dataset.from_dict({"prompt": [to_text(row) for row in draw_ids(count, shape["prompt"], words=256)]})


def ppo(size: str, record: Record) -> None:
    """Measures rollouts of PPO and of GRPO with the same model, numbers of tokens, batches and epochs, in turns."""
    shape, roof = PPO[size], measure_matmul_roof(torch.bfloat16 if IS_CUDA else torch.float32)
    makers = {"ppo": (make_ppo_trainer, 2), "grpo": (make_grpo_trainer, 1)}  # PPO also trains a critic
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in makers}
    begin = time.perf_counter()
    for number in range(2):
        for name in list(makers)[:: 1 if number == 0 else -1]:
            maker, models = makers[name]
            runs[name].append(run_rollouts(maker, shape, models, roof))
            record(f"{name}_{number}", runs[name][-1])
        record_utilization(runs, record)
        if 2 * (time.perf_counter() - begin) > shape["seconds"]:
            break


def record_utilization(runs: dict[str, list[dict[str, Any]]], record: Record) -> None:
    utilization = {name: statistics.median(run["utilization"] for run in results) for name, results in runs.items()}
    record("utilization", utilization)
    record("utilization / grpo", utilization["ppo"] / utilization["grpo"])


def run_rollouts(maker: Callable, shape: dict[str, Any], models: int, roof: float) -> dict[str, Any]:
    """Trains on some rollouts. The first is a warm-up. Returns the median seconds of each phase."""
    settings = {
        "per_device_train_batch_size": shape["micro_batch"],
        "gradient_accumulation_steps": shape["micro_batches"],
        "logging_steps": 10_000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not IS_CUDA,
        "bf16": IS_CUDA,
        "dataloader_pin_memory": False,
    }
    policy = build_llama(LlamaForCausalLM, shape["model"], torch.bfloat16 if IS_CUDA else torch.float32)
    clock = PhaseClock(policy)
    measure_peak_gib()
    with tempfile.TemporaryDirectory() as folder:
        trainer = maker(folder, shape, policy, settings)
        trainer.add_callback(clock)
        trainer.train()
    measured = clock.rollouts[1:]
    result: dict[str, Any] = {
        phase: statistics.median(rollout[phase] for rollout in measured)
        for phase in ("generation", "evaluation", "optimization")
    }
    rows = shape["micro_batch"] * shape["micro_batches"]
    tokens = EPOCHS * rows * (shape["prompt"] + shape["completion"])
    trained = 6 * models * count_parameters(policy) * tokens
    result |= {
        "rollouts": len(measured),
        "generated_tokens_per_second": rows * shape["completion"] / result["generation"],
        "utilization": trained / result["optimization"] / roof,
        "peak_gib": measure_peak_gib(),
    }
    del trainer, policy, clock
    free_memory()
    return result


# Memory between stages, and waits for the GPU


def stages(size: str, record: Record) -> None:
    """Records the memory before each stage of a tiny run of Algorithm 1, and where the host waits for the GPU."""
    measured = []

    def measure(run: RunFolder, name: str, arguments: dict) -> None:
        allocated = torch.cuda.memory_allocated() / 2**20 if IS_CUDA else None
        measured.append({"stage": name, "allocated_mib": allocated})

    start_cublas()
    with tempfile.TemporaryDirectory() as folder, RunFolder.on_start(measure):
        run_tiny_algorithm(Path(folder))
    record("memory_before_stages", measured)
    model = build_llama(LlamaForSequenceClassification, "tiny", torch.float32)
    policy = build_llama(LlamaForCausalLM, "tiny", torch.float32)
    tokenizer, texts = make_tokenizer(MODELS["tiny"]["words"]), make_texts(8, 16, seed=0)
    shape = {"n": 2, "prompt": 8, "new": 4}
    ids = draw_ids(4, 8, MODELS["tiny"]["words"])
    with tempfile.TemporaryDirectory() as folder:
        steps = argparse.Namespace(**REWARD["tiny"])
        (trainer,) = make_trainers(folder, steps, ("uml",)).values()
        parts = {
            "score": lambda: score(model, tokenizer, [p for p, _, _ in texts], [a for _, a, _ in texts]),
            "sample": lambda: sample_as_engine(policy, ids, shape["n"], make_sampling_config(shape)),
            "reward_step": lambda: measure_step(trainer),
        }
        for name, part in parts.items():
            part()  # warm-up
            with count_waits() as waits:
                part()
            record(f"waits_{name}", dict(waits.most_common(12)))


@contextlib.contextmanager
def count_waits() -> Iterator[collections.Counter[str]]:
    """Counts how often each line waits for the GPU, by PyTorch's own warnings. On a CPU there are none."""
    waits: collections.Counter[str] = collections.Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if IS_CUDA:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if IS_CUDA:
                torch.cuda.set_sync_debug_mode("default")
            for warning in caught:
                if "called a synchronizing" in str(warning.message):  # not the notice of the mode itself
                    waits["/".join(Path(warning.filename).parts[-3:]) + f":{warning.lineno}"] += 1


class SameLength:
    """Two completions mean the same if their lengths are both even or both odd. Random models never agree."""

    fingerprint = "same length"

    def normalize(self, text: str) -> str:
        return text

    def are_equivalent(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        return [len(first) % 2 == len(second) % 2 for first, second in zip(firsts, seconds, strict=True)]


def run_tiny_algorithm(folder: Path) -> None:
    """Runs Algorithm 1 with SPG and UML on tiny models."""
    policy = build_llama(LlamaForCausalLM, "few_words", torch.float32)
    policy.save_pretrained(folder / "sft")
    make_tokenizer(policy.config.vocab_size).save_pretrained(folder / "sft")
    prompts, chosen, rejected = (
        [to_text(row) for row in draw_ids(16, 8, policy.config.vocab_size, seed)] for seed in range(3)
    )
    del policy
    free_memory()
    training = {"per_device_train_batch_size": 4, "max_steps": 2, "report_to": "none", "use_cpu": not IS_CUDA}
    config = RLPConfig(
        output_dir=str(folder / "run"),
        sft_model=str(folder / "sft"),
        method="uml+spg",
        num_generations=6,
        max_new_tokens=8,
        reward_args={**training, "view_prompts_per_device": 2, "confidence_threshold": 0.0},
        policy_args={**training, "response_length": 4, "num_sample_generations": 0},
    )
    preferences = Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected})
    run_rlp(config, preferences, preferences.select_columns("prompt"), SameLength())
