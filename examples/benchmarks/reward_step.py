"""
What a training step of `RLPRewardTrainer` costs against one of `trl.RewardTrainer`.

    python examples/benchmarks/reward_step.py --output reward_step.json

`none`: both trainers on the same pairs. `uml`: ours on pairs and views, TRL's on the same pairs and, as further pairs,
the same number of texts of the same length, so both push the same number of tokens through the model. All texts have
one length, so no batch is luckier than another. In each round all trainers take one step, in turning order; a figure
is the median over rounds of the ratio of step times, data loading included. Without an accelerator a step is timed in
seconds of processor time, so that other programs on the machine count for little. About three minutes on one core.
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
CLOCK = time.perf_counter if HAS_ACCELERATOR else time.process_time


class StepClock(TrainerCallback):
    """Times the one step of a call of `train()`, from before its batch is loaded to after the optimizer's step."""

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


def make_model(hidden_size: int, layers: int) -> LlamaForSequenceClassification:
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
    return LlamaForSequenceClassification(config)


def make_texts(count: int, tokens: int, seed: int) -> list[tuple[str, str, str]]:
    """A prompt and two outputs; with its prompt and EOS each output has `tokens` tokens."""
    draw = np.random.default_rng(seed)
    prompt = tokens // 3

    def words(number: int) -> str:
        return "".join(f"w{i} " for i in draw.integers(WORDS, size=number))

    return [(words(prompt), words(tokens - prompt - 1), words(tokens - prompt - 1)) for _ in range(count)]


def make_trainers(folder: str, arguments: argparse.Namespace) -> dict[str, RewardTrainer]:
    batch = arguments.batch
    texts = make_texts(8 * batch, arguments.tokens, seed=0)
    pairs = Dataset.from_list([{"prompt": p, "chosen": a, "rejected": b} for p, a, b in texts])
    samples = Dataset.from_list([{"prompt": p, "completions": [a, b], "finished": [True] * 2} for p, a, b in texts])
    settings = {"max_steps": 1, "save_strategy": "no", "logging_steps": 10_000, "report_to": "none"}
    settings |= {"use_cpu": not HAS_ACCELERATOR, "bf16": False, "dataloader_pin_memory": False, "disable_tqdm": True}
    uml = {"method": "uml", "view_prompts_per_device": batch}
    variants = {
        "trl": (RewardTrainer, RewardConfig, batch, {}, {}),
        "none": (RLPRewardTrainer, RLPRewardConfig, batch, {}, {}),
        "trl_same_tokens": (RewardTrainer, RewardConfig, 2 * batch, {}, {}),
        "uml": (RLPRewardTrainer, RLPRewardConfig, batch, uml, {"policy_samples": samples}),
    }
    trainers = {}
    for name, (trainer_class, config_class, pairs_per_batch, own_settings, own_arguments) in variants.items():
        config = config_class(folder, per_device_train_batch_size=pairs_per_batch, **settings, **own_settings)
        trainers[name] = trainer_class(
            make_model(arguments.hidden_size, arguments.layers),
            config,
            train_dataset=pairs,
            processing_class=make_tokenizer(),
            callbacks=[StepClock()],
            **own_arguments,
        )
    return trainers


def step_seconds(trainer: RewardTrainer) -> float:
    trainer.train()
    (clock,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StepClock))
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="pairs a step, and instructions whose views come along")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each text")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(folder, arguments)
        rounds = []
        for number in range(arguments.rounds + 1):
            order = list(trainers)[number % 4 :] + list(trainers)[: number % 4]
            rounds.append({name: step_seconds(trainers[name]) for name in order})
    # The first round warms up.
    rounds = rounds[1:]
    for name in trainers:
        print(f"{name}: {statistics.median(seconds[name] for seconds in rounds):.3f} s a step")
    figures = {}
    for name, base, goal in (("none", "trl", 1.03), ("uml", "trl_same_tokens", 1.05)):
        ratios = [seconds[name] / seconds[base] for seconds in rounds]
        ratio = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f"{name} / {base}: {ratio:.3f}, half of the rounds between {low:.3f} and {high:.3f}")
        figures[f"reward_step_{name}"] = {"value": round(ratio, 4), "goal": goal, "better": "lower"}
    print(json.dumps(figures, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
