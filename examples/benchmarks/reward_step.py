"""
Cost of a training step of `RLPRewardTrainer` compared with a step of `trl.RewardTrainer`.

    python examples/benchmarks/reward_step.py --output reward_step.json

There are two comparisons:

- `none`: both trainers use the same pairs.
- `uml`: ours uses pairs and views. TRL's uses the same pairs, and further pairs with as many texts of the same length
  as the views. Both process the same number of tokens.

All texts have the same length, so all batches cost the same. In each round every trainer takes one step, in rotating
order. A result is the median over rounds of the ratio of the step times, including data loading. Without an
accelerator, processor time is measured, so other programs have little influence. The script takes about three minutes
on one core.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
from trl import RewardConfig, RewardTrainer

from trl_rlp import RLPRewardConfig, RLPRewardTrainer


WORDS = 2000
HAS_ACCELERATOR = torch.accelerator.is_available()
DEVICE = torch.accelerator.current_accelerator() if HAS_ACCELERATOR else torch.device("cpu")
CLOCK = time.perf_counter if HAS_ACCELERATOR else time.process_time


class StepClock(TrainerCallback):
    """Measures the only step of a `train()` call, from the loading of its batch to the end of the optimizer step."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.begin = CLOCK()

    def on_step_end(self, args, state, control, **kwargs):
        if HAS_ACCELERATOR:
            torch.accelerator.synchronize()
        self.seconds = CLOCK() - self.begin


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(WORDS))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def make_model(hidden_size: int, layers: int, dtype: torch.dtype = torch.float32) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 2,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_labels=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with DEVICE:
        return LlamaForSequenceClassification(config).to(dtype)


def make_texts(count: int, tokens: int, seed: int) -> list[tuple[str, str, str]]:
    """Makes prompts with two completions each. Prompt, completion and EOS together have `tokens` tokens."""
    generator = np.random.default_rng(seed)
    prompt = tokens // 3

    def draw_words(number: int) -> str:
        return "".join(f"w{i} " for i in generator.integers(WORDS, size=number))

    return [
        (draw_words(prompt), draw_words(tokens - prompt - 1), draw_words(tokens - prompt - 1)) for _ in range(count)
    ]


def make_trainers(
    folder: str,
    arguments: argparse.Namespace,
    names: tuple[str, ...] = ("trl", "none", "trl_same_tokens", "uml"),
    dtype: torch.dtype = torch.float32,
) -> dict[str, RewardTrainer]:
    """Makes the named trainers. With bf16 weights, training is in bf16."""
    batch = arguments.batch
    texts = make_texts(8 * batch, arguments.tokens, seed=0)
    pairs = Dataset.from_list([{"prompt": p, "chosen": a, "rejected": b} for p, a, b in texts])
    samples = Dataset.from_list([{"prompt": p, "completions": [a, b], "finished": [True] * 2} for p, a, b in texts])
    settings = {"max_steps": 1, "save_strategy": "no", "logging_steps": 10_000, "report_to": "none"}
    settings |= {"use_cpu": not HAS_ACCELERATOR, "bf16": dtype == torch.bfloat16}
    settings |= {"dataloader_pin_memory": False, "disable_tqdm": True}
    uml = {"method": "uml", "view_prompts_per_device": batch}
    variants = {
        "trl": (RewardTrainer, RewardConfig, batch, {}, {}),
        "none": (RLPRewardTrainer, RLPRewardConfig, batch, {}, {}),
        "trl_same_tokens": (RewardTrainer, RewardConfig, 2 * batch, {}, {}),
        "uml": (RLPRewardTrainer, RLPRewardConfig, batch, uml, {"policy_samples": samples}),
        "uml_apart": (
            RLPRewardTrainer,
            RLPRewardConfig,
            batch,
            {**uml, "joint_forward": False},
            {"policy_samples": samples},
        ),
    }
    trainers = {}
    for name in names:
        trainer_class, config_class, pairs_per_batch, extra_settings, extra_arguments = variants[name]
        config = config_class(folder, per_device_train_batch_size=pairs_per_batch, **settings, **extra_settings)
        trainers[name] = trainer_class(
            make_model(arguments.hidden_size, arguments.layers, dtype),
            config,
            train_dataset=pairs,
            processing_class=make_tokenizer(),
            callbacks=[StepClock()],
            **extra_arguments,
        )
    return trainers


def measure_step(trainer: RewardTrainer) -> float:
    trainer.train()
    (clock,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StepClock))
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="pairs per step, and prompts with views per step")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per text")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(folder, arguments)
        rounds = []
        for number in range(arguments.rounds + 1):
            order = list(trainers)[number % 4 :] + list(trainers)[: number % 4]
            rounds.append({name: measure_step(trainers[name]) for name in order})
    rounds = rounds[1:]  # the first round is a warm-up
    for name in trainers:
        print(f"{name}: {statistics.median(seconds[name] for seconds in rounds):.3f} s per step")
    results = {}
    for name, base, goal in (("none", "trl", 1.03), ("uml", "trl_same_tokens", 1.05)):
        ratios = [seconds[name] / seconds[base] for seconds in rounds]
        ratio = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f"{name} / {base}: {ratio:.3f}, middle half of the rounds {low:.3f} to {high:.3f}")
        results[f"reward_step_{name}"] = {"value": round(ratio, 4), "goal": goal, "better": "lower"}
    print(json.dumps(results, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"figures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
