"""What all stages of one seed share: the world, the tokenizer, the prompts, and how outputs are drawn and judged."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from models import make_tokenizer
from settings import Settings
from task import EVALUATION_QUESTIONS, TRAINING_QUESTIONS, World, gold, is_right, parse, prompts_of, reference_outputs
from transformers import AutoModelForCausalLM, PreTrainedModel

from trl_rlp import (
    best_of_n,
    describe_outputs,
    evaluate_reward_model,
    kl_to_reference,
    mean_reward,
    sample_completions,
    score_samples,
)


MAX_NEW_TOKENS = 16
SFT = "sft"


class Bench:
    """
    One seed's world and yardsticks.

    Args:
        folder (`Path`):
            Where the seed's files go.
        seed (`int`):
            Decides the world and every draw.
        settings ([`Settings`]):
            All else.
    """

    def __init__(self, folder: Path, seed: int, settings: Settings):
        self.folder, self.seed, self.settings = folder, seed, settings
        self.world, self.tokenizer = World.of(seed), make_tokenizer()
        self.training_prompts = prompts_of(TRAINING_QUESTIONS)
        self.evaluation_prompts = prompts_of(EVALUATION_QUESTIONS)
        self.unlabeled = self.training_prompts * settings.copies  # U
        self.references = reference_outputs(self.world, self.evaluation_prompts, seed)

    def initial_policy(self) -> PreTrainedModel:
        """A fresh copy of π_SFT."""
        return AutoModelForCausalLM.from_pretrained(self.folder / SFT)

    def sample(self, policy: PreTrainedModel, prompts: list[str], n: int, temperature: float, stream: int) -> Dataset:
        """Draws n outputs of each prompt; `stream` keeps the draws of different purposes apart."""
        return sample_completions(
            Dataset.from_dict({"prompt": prompts}),
            policy,
            self.tokenizer,
            num_generations=n,
            temperature=temperature,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=10 * self.seed + stream,
        )

    def gold(self, prompt: str, output: str) -> float:
        """The gold reward."""
        return gold(self.world, prompt, output)

    def labeled_pairs(self, samples: Dataset) -> Dataset:
        """The first output of each prompt and the next of another gold reward, in TRL's format."""
        rows = []
        for row in samples:
            worth = [self.gold(row["prompt"], output) for output in row["completions"]]
            other = next((place for place, value in enumerate(worth) if value != worth[0]), None)
            if other is None:
                continue
            sides = {"chosen": 0, "rejected": other} if worth[0] > worth[other] else {"chosen": other, "rejected": 0}
            texts = {side: row["completions"][place] for side, place in sides.items()}
            ends = {f"{side}_finished": row["finished"][place] for side, place in sides.items()}
            rows.append({"prompt": row["prompt"], **texts, **ends})
        return Dataset.from_list(rows)

    def human_pairs(self, sft: PreTrainedModel) -> Dataset:
        """D: finished outputs of π_SFT, labeled by the gold reward, a share of the labels flipped."""
        settings = self.settings
        copies = 1 + 4 * settings.human_pairs // len(self.training_prompts)
        samples = self.sample(sft, self.training_prompts * copies, 2, 1.0, stream=2)
        generator = np.random.default_rng([self.seed, 3])
        pairs = self.labeled_pairs(samples.select(generator.permutation(len(samples))))
        pairs = pairs.filter(lambda row: row["chosen_finished"] and row["rejected_finished"])
        pairs = pairs.select(range(min(settings.human_pairs, len(pairs))))
        flips = generator.random(len(pairs)) < settings.flipped
        orders = [("rejected", "chosen") if flip else ("chosen", "rejected") for flip in flips]
        return Dataset.from_list(
            [
                {"prompt": row["prompt"], "chosen": row[first], "rejected": row[second]}
                for row, (first, second) in zip(pairs, orders, strict=True)
            ]
        )

    def policy_figures(
        self, policy: PreTrainedModel, sft: PreTrainedModel, labeler: PreTrainedModel
    ) -> dict[str, Any]:
        """Figures on wordings that nothing after SFT was trained on; the KL is that at temperature 1."""
        n = max(2, self.settings.evaluation_samples)
        samples = self.sample(policy, self.evaluation_prompts, n, 0.7, stream=7)
        untempered = self.sample(policy, self.evaluation_prompts, n, 1.0, stream=9)
        outputs = [(row["prompt"], output) for row in samples for output in row["completions"]]
        return {
            "win_rate": float(np.mean(self.wins(samples))),
            "gold": float(np.mean([self.gold(*pair) for pair in outputs])),
            "right": float(np.mean([is_right(self.world, *pair) for pair in outputs])),
            "malformed": float(np.mean([not parse(*pair).values for pair in outputs])),
            "proxy": mean_reward(labeler, self.tokenizer, samples),
            "kl": kl_to_reference(policy, sft, self.tokenizer, untempered),
            "characters": describe_outputs(samples)["characters"],
        }

    def wins(self, samples: Dataset) -> list[list[float]]:
        """Of each output against the reference's: 1 for a higher gold reward, one half for an equal one, else 0."""
        wins = []
        for row, reference in zip(samples, self.references, strict=True):
            bar = self.gold(row["prompt"], reference)
            worth = [self.gold(row["prompt"], output) for output in row["completions"]]
            wins.append([(value > bar) + 0.5 * (value == bar) for value in worth])
        return wins

    def best_of_n(self, sft: PreTrainedModel, reward_model: PreTrainedModel) -> dict[str, float]:
        """What the best of n outputs of π_SFT by r is worth, drawn at the temperature of all evaluation."""
        samples = self.sample(sft, self.evaluation_prompts, self.settings.best_of_samples, 0.7, stream=8)
        rewards = score_samples(reward_model, self.tokenizer, samples)
        worth = [[self.gold(row["prompt"], output) for output in row["completions"]] for row in samples]
        n = self.settings.best_of
        wins, picked = (best_of_n(rewards, values, n) for values in (self.wins(samples), worth))
        return {"win_rate": wins["value"], "gold": picked["value"], "kl": picked["kl"]}

    def reward_figures(self, reward_model: PreTrainedModel, sets: dict[str, Dataset]) -> dict[str, dict[str, float]]:
        """Accuracy and calibration on labeled pairs."""
        return {name: evaluate_reward_model(reward_model, self.tokenizer, pairs) for name, pairs in sets.items()}

    def label_accuracy(self, synthetic: Dataset) -> dict[str, Any]:
        """How often y_w is better by the gold reward, and right where one of the two sides is."""
        worth = [[self.gold(row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in synthetic]
        sides = [
            [is_right(self.world, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in synthetic
        ]
        decided = [chosen for chosen, rejected in sides if chosen != rejected]
        is_better = [(chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in worth]
        return {
            "pairs": len(synthetic),
            "accuracy": float(np.mean(is_better)),
            "decided": len(decided),
            "right": float(np.mean(decided)) if decided else None,
        }
