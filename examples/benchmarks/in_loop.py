"""
What semantic anchors and a reward model that is refined in the loop cost, as a share of a run.

    python examples/benchmarks/in_loop.py --output in_loop.json

There are three parts:

- `share`: the share of a PPO run and of a GRPO run that the anchor reward and the refinements take. A run has one
  rollout more than the default schedule (every 8 rollouts), so it refines the reward model once. The share is that of
  a period of 8 rollouts and one refinement. A refinement trains a new reward model for one epoch on the human pairs
  and on one pair for each prompt of the period. There are 20 human pairs for each completion of a rollout, about as
  many as in the paper, which has 10,000 pairs and AlpacaFarm's rollouts of 512. Only the size is smaller. The script
  also computes how long the period must be for a share of 0.15, if the refinement takes the same time. Policy,
  reference, critic and reward model are random Llamas of one size, and the NLI classifier is a BERT of MiniLM's size.
  Completions almost never repeat, so the classifier is asked about each one, which is the most that an anchor reward
  can ask. It always says "neutral", so each prompt gives a pair, and only one direction is asked. A completion that
  means the same costs a second direction.
- `reward`: the time in which `RefinableReward` scores and records a rollout, compared with the time in which TRL's
  GRPO trainer scores the same texts with the same model. Both sides take turns.
- `questions`: how many questions an anchor reward asks for each completion. The completions are sampled answers to
  TriviaQA questions, the first half of them for the anchors. A question may come again in a later rollout, as in
  several epochs. Without a cache, each rollout is compared by a new reward.

Without an accelerator, processor time is measured with one thread, so other programs have little influence. A result
is the median over rounds. The script takes about twelve minutes on one core.
"""

import argparse
import contextlib
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import GRPOConfig, GRPOTrainer

from trl_rlp import (
    ExactMatch,
    NLIEquivalence,
    PPOConfig,
    PPOTrainer,
    RefinableReward,
    RewardRefinementCallback,
    RLPRewardConfig,
    RLPRewardTrainer,
    SemanticAnchorReward,
    SemanticAnchors,
)
from trl_rlp.data.preferences import hold_out


SHARED = Path(__file__).resolve().parents[2] / "../shared"
HAS_ACCELERATOR = torch.accelerator.is_available()
DEVICE = torch.accelerator.current_accelerator() if HAS_ACCELERATOR else torch.device("cpu")
PARTS = ("share", "reward", "questions")
GOAL = 0.15
HELDOUT_SHARE = 0.05
TRAINERS = ("ppo", "grpo")
SIZES = {
    "every": (8, "rollouts between two refinements"),
    "batch": (8, "completions per micro-batch, and pairs per step of a refinement"),
    "micro_batches": (2, "micro-batches per rollout"),
    "num_generations": (4, "completions per prompt"),
    "human_pairs": (320, "human pairs in a refinement, 20 for each completion of a rollout"),
    "prompt_tokens": (16, "tokens per prompt"),
    "completion_tokens": (48, "tokens per completion"),
    "vocabulary": (4096, "vocabulary size of all models"),
    "hidden_size": (320, "hidden size of policy, critic and reward model, 64 per attention head"),
    "layers": (8, "layers of policy, critic and reward model"),
    "nli_hidden_size": (384, "hidden size of the NLI classifier, 64 per attention head"),
    "nli_layers": (6, "layers of the NLI classifier"),
}


def read_clock() -> float:
    if HAS_ACCELERATOR:
        torch.accelerator.synchronize()
        return time.perf_counter()
    return time.process_time()


class TimedAnchorReward(SemanticAnchorReward):
    """Adds up the time of its calls."""

    seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> list[float | None]:
        begin = read_clock()
        rewards = super().__call__(*args, **kwargs)
        self.seconds += read_clock() - begin
        return rewards


@contextlib.contextmanager
def time_reward_training() -> Iterator[list[float]]:
    """Yields a list. Each training of a reward model inside the `with` block adds its seconds to it."""
    seconds, train = [], RLPRewardTrainer.train

    def train_and_time(trainer: RLPRewardTrainer, *args: Any, **kwargs: Any) -> Any:
        begin = read_clock()
        output = train(trainer, *args, **kwargs)
        seconds.append(read_clock() - begin)
        return output

    with mock.patch.object(RLPRewardTrainer, "train", train_and_time):
        yield seconds


class TimedRefinement(RewardRefinementCallback):
    """Adds up the time after the optimizer steps, in which it collects rollouts and refines the reward model."""

    seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        self.begin = read_clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        begin = read_clock()
        super().on_step_end(*args, **kwargs)
        self.seconds += read_clock() - begin

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_end(*args, **kwargs)
        self.run_seconds = read_clock() - self.begin


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    tokens = ["<pad>", "<eos>", *(f"w{i}" for i in range(vocabulary - 2))]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def make_llama(model_class: type, sizes: argparse.Namespace, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.hidden_size * 11 // 4,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.hidden_size // 64,
        num_labels=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with DEVICE:
        return model_class(config)


def make_reward_model(sizes: argparse.Namespace) -> LlamaForSequenceClassification:
    return make_llama(LlamaForSequenceClassification, sizes, seed=1).eval()


def make_equivalence(sizes: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> NLIEquivalence:
    torch.manual_seed(2)
    labels = ("contradiction", "neutral", "entailment")
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.nli_hidden_size,
        intermediate_size=4 * sizes.nli_hidden_size,
        num_hidden_layers=sizes.nli_layers,
        num_attention_heads=sizes.nli_hidden_size // 64,
        pad_token_id=0,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    with DEVICE:
        classifier = BertForSequenceClassification(config)
    classifier.classifier.bias.data[labels.index("neutral")] = 100
    return NLIEquivalence(classifier.eval(), tokenizer, instruction="prompt", max_length=512)


def draw_texts(count: int, tokens: int, vocabulary: int, seed: int) -> list[str]:
    ids = np.random.default_rng(seed).integers(vocabulary - 2, size=(count, tokens))
    return ["".join(f"w{i} " for i in row) for row in ids]


def make_anchors(prompts: list[str], sizes: argparse.Namespace) -> SemanticAnchors:
    """Makes an anchor for every prompt, from two completions that are equal."""
    texts = draw_texts(len(prompts), sizes.completion_tokens, sizes.vocabulary, seed=4)
    samples = {"prompt": prompts, "completions": [[text] * 2 for text in texts], "finished": [[True] * 2] * len(texts)}
    return SemanticAnchors.from_samples(Dataset.from_dict(samples), ExactMatch())


def make_preferences(sizes: argparse.Namespace) -> Dataset:
    def draw(tokens: int, seed: int) -> list[str]:
        return draw_texts(sizes.human_pairs, tokens, sizes.vocabulary, seed)

    return Dataset.from_dict(
        {
            "prompt": draw(sizes.prompt_tokens, 5),
            "chosen": draw(sizes.completion_tokens, 6),
            "rejected": draw(sizes.completion_tokens, 7),
        }
    )


def make_trainer(name: str, folder: str, sizes: argparse.Namespace, prompts: Dataset, **arguments: Any) -> GRPOTrainer:
    tokenizer = make_tokenizer(sizes.vocabulary)
    settings = {
        "max_steps": sizes.every + 1,
        "per_device_train_batch_size": sizes.batch,
        "gradient_accumulation_steps": sizes.micro_batches,
        "num_generations": sizes.num_generations,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not HAS_ACCELERATOR,
        "bf16": False,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
    }
    policy = f"{folder}/sft"  # with `beta`, GRPO loads the reference policy by its name
    make_llama(LlamaForCausalLM, sizes, seed=0).save_pretrained(policy)
    if name == "ppo":
        config = PPOConfig(folder, response_length=sizes.completion_tokens, **settings)
        return PPOTrainer(config, tokenizer, policy, train_dataset=prompts, **arguments)
    config = GRPOConfig(folder, max_completion_length=sizes.completion_tokens, beta=0.04, **settings)
    return GRPOTrainer(policy, args=config, processing_class=tokenizer, train_dataset=prompts, **arguments)


def find_period(others: float, anchored: float, refinement: float) -> float:
    """Returns the rollouts between two refinements for which all additions take the share `GOAL` of the time."""
    left = GOAL * (others + anchored) - anchored  # the time of a rollout that is left for refinements
    return math.ceil((1 - GOAL) * refinement / left) if left > 0 else math.inf


def measure_share(name: str, sizes: argparse.Namespace, trainings: list[float]) -> dict[str, float]:
    """Trains a policy for `every` rollouts and one more. Returns seconds per rollout and of the refinement."""
    tokenizer = make_tokenizer(sizes.vocabulary)
    rollout = sizes.batch * sizes.micro_batches
    count = (sizes.every + 1) * rollout // sizes.num_generations
    prompts = draw_texts(count, sizes.prompt_tokens, sizes.vocabulary, seed=3)
    anchors, equivalence = make_anchors(prompts, sizes), make_equivalence(sizes, tokenizer)
    reward = RefinableReward(make_reward_model(sizes), tokenizer, [tokenizer.eos_token_id])
    anchor_reward = TimedAnchorReward(anchors, equivalence)
    with tempfile.TemporaryDirectory() as folder:
        args = RLPRewardConfig(
            folder,
            method="spg",
            num_train_epochs=1,
            per_device_train_batch_size=sizes.batch,
            report_to="none",
            disable_tqdm=True,
            use_cpu=not HAS_ACCELERATOR,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )
        preferences, heldout = hold_out(make_preferences(sizes), HELDOUT_SHARE, seed=42)
        refinement = TimedRefinement(
            reward,
            preferences,
            args,
            eval_preference_dataset=heldout,
            base_model=lambda: make_reward_model(sizes),
            anchors=anchors,
            equivalence=equivalence,
            every=sizes.every,
        )
        trainer = make_trainer(
            name,
            folder,
            sizes,
            Dataset.from_dict({"prompt": prompts}),
            reward_funcs=[reward, anchor_reward],
            callbacks=[refinement],
        )
        trainer.train()
    pairs = [row["refinement/pairs"] for row in trainer.state.log_history if "refinement/pairs" in row]
    if len(pairs) != 1 or not trainings:
        raise SystemExit(f"The {name} run has {len(pairs)} refinements, expected 1.")
    rollouts = sizes.every + 1
    others = (refinement.run_seconds - refinement.seconds - anchor_reward.seconds) / rollouts
    anchored = anchor_reward.seconds / rollouts
    period = sizes.every * (others + anchored) + refinement.seconds
    return {
        "rollout": others,
        "anchors": anchored,
        "refinement": refinement.seconds,
        "training": trainings[-1],
        "every": find_period(others, anchored, refinement.seconds),
        "pairs": pairs[0],
        "share": 1 - sizes.every * others / period,
        "share_of_anchors": sizes.every * anchored / period,
        "questions": anchor_reward.comparison.num_questions / (rollouts * rollout),
    }


def measure_reward_cost(sizes: argparse.Namespace, rounds: int) -> list[float]:
    """Returns the ratio of the times of `RefinableReward` and of TRL's own handling of the model, for each round."""
    tokenizer, model = make_tokenizer(sizes.vocabulary), make_reward_model(sizes)
    count = sizes.batch * sizes.micro_batches
    prompts = draw_texts(count, sizes.prompt_tokens, sizes.vocabulary, seed=3)
    reward = RefinableReward(model, tokenizer, [tokenizer.eos_token_id])
    dataset = Dataset.from_dict({"prompt": prompts})
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            "trl": make_trainer(
                "grpo", folder, sizes, dataset, reward_funcs=model, reward_processing_classes=tokenizer
            ),
            "ours": make_trainer("grpo", folder, sizes, dataset, reward_funcs=reward),
        }
    reward.follow(trainers["ours"].model)
    seconds = []
    for number in range(rounds + 1):
        completions = draw_texts(count, sizes.completion_tokens, sizes.vocabulary, seed=10 + number)
        ids = tokenizer(completions)["input_ids"]
        measured = {}
        for side in ("trl", "ours") if number % 2 == 0 else ("ours", "trl"):
            trainers[side].model.train()
            inputs = [{"prompt": prompt} for prompt in prompts]
            begin = read_clock()
            trainers[side]._calculate_rewards(inputs, prompts, completions, ids)
            if side == "ours":
                reward.collect()
            measured[side] = read_clock() - begin
        seconds.append(measured)
    if reward.num_rollouts != rounds + 1:
        raise SystemExit(f"{reward.num_rollouts} rollouts were recorded, expected {rounds + 1}.")
    return [measured["ours"] / measured["trl"] for measured in seconds[1:]]  # the first round is a warm-up


def count_questions(data: Path, prompts_per_rollout: int = 16, num_generations: int = 8, epochs: int = 2) -> dict:
    """Returns the questions per completion with an anchor: over all rollouts, at most in one, and without a cache."""
    path = data / "clusters/triviaqa_llama13b_500x20.jsonl"
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    samples = [{"prompt": row["question"], "completions": row["samples"][: len(row["samples"]) // 2]} for row in rows]
    samples = Dataset.from_list([{**row, "finished": [True] * len(row["completions"])} for row in samples])
    anchors = SemanticAnchors.from_samples(samples, ExactMatch())
    cached, generator = SemanticAnchorReward(anchors, ExactMatch()), random.Random(0)
    asked, asked_anew, compared = [], [], []
    for _ in range(epochs):
        for start in range(0, len(rows), prompts_per_rollout):
            prompts, completions = [], []
            for row in rows[start : start + prompts_per_rollout]:
                answers = row["samples"][len(row["samples"]) // 2 :]
                prompts += [row["question"]] * num_generations
                completions += generator.choices(answers, k=num_generations)
            before = cached.comparison.num_questions
            rewards = cached(prompts=prompts, completions=completions)
            asked.append(cached.comparison.num_questions - before)
            compared.append(sum(reward is not None for reward in rewards))
            uncached = SemanticAnchorReward(anchors, ExactMatch())
            uncached(prompts=prompts, completions=completions)
            asked_anew.append(uncached.comparison.num_questions)
    return {
        "all": sum(asked) / sum(compared),
        "most": max(a / max(c, 1) for a, c in zip(asked, compared, strict=True)),
        "without_cache": sum(asked_anew) / sum(compared),
        "completions": sum(compared),
    }


def report_share(sizes: argparse.Namespace, rounds: int) -> dict[str, dict]:
    results: dict[str, list[dict]] = {name: [] for name in TRAINERS}
    with time_reward_training() as trainings:
        for number in range(rounds):
            for name in TRAINERS if number % 2 == 0 else TRAINERS[::-1]:
                results[name].append(measure_share(name, sizes, trainings))
    parameters = sum(parameter.numel() for parameter in make_llama(LlamaForCausalLM, sizes, 0).parameters())
    print(f"Llamas of {parameters / 1e6:.1f} million parameters, rollouts of {sizes.batch * sizes.micro_batches}")
    figures = {}
    for name, measured in results.items():
        middle = {key: statistics.median(row[key] for row in measured) for key in measured[0]}
        shares = [row["share"] for row in measured]
        period = f"a refinement every {middle['every']:.0f} rollouts"
        if math.isinf(middle["every"]):
            period = "no schedule, because anchors take more without any refinement"
        print(
            f"{name}: a rollout takes {middle['rollout']:.2f} s, its anchor rewards {middle['anchors']:.2f} s "
            f"({middle['questions']:.2f} questions per completion)\n"
            f"  a refinement with {sizes.human_pairs} human pairs and {middle['pairs']:.0f} new ones takes "
            f"{middle['refinement']:.2f} s: training {middle['training']:.2f} s, the rest "
            f"{middle['refinement'] - middle['training']:.2f} s\n"
            f"  share of the run with a refinement every {sizes.every} rollouts: {middle['share']:.3f} (rounds "
            f"{min(shares):.3f} to {max(shares):.3f}), of which anchors {middle['share_of_anchors']:.3f}\n"
            f"  for a share of {GOAL}: {period}"
        )
        figures[f"in_loop_share_{name}"] = {"value": round(middle["share"], 4), "goal": GOAL, "better": "lower"}
    return figures


def report_reward(sizes: argparse.Namespace, rounds: int) -> dict[str, dict]:
    ratios = measure_reward_cost(sizes, 10 * rounds)
    ratio = statistics.median(ratios)
    print(f"RefinableReward / TRL: {ratio:.3f}, rounds {min(ratios):.3f} to {max(ratios):.3f}")
    return {"in_loop_refinable_reward": {"value": round(ratio, 4), "goal": 1.05, "better": "lower"}}


def report_questions(data: Path) -> dict[str, dict]:
    counts = count_questions(data)
    print(
        f"questions per completion with an anchor: {counts['all']:.3f}, at most {counts['most']:.3f} in a rollout, "
        f"without a cache {counts['without_cache']:.3f}, {counts['completions']} completions"
    )
    return {"in_loop_questions_per_completion": {"value": round(counts["most"], 4), "goal": 1.0, "better": "lower"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="runs of each trainer, a tenth of the timed rollouts")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with clusters/triviaqa_*.jsonl")
    for name, (default, text) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    if "share" in arguments.parts:
        figures |= report_share(arguments, arguments.rounds)
    if "reward" in arguments.parts:
        figures |= report_reward(arguments, arguments.rounds)
    if "questions" in arguments.parts:
        figures |= report_questions(arguments.data)
    print(json.dumps(figures, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
