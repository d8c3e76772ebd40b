"""The test bench of one seed: its world, tokenizer and prompts, and how completions are sampled and evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from models import make_tokenizer
from settings import Settings
from task import (
    EVALUATION_QUESTIONS,
    TRAINING_QUESTIONS,
    SameValue,
    World,
    build_prompts,
    gold_reward,
    is_correct,
    parse,
    write_reference_completions,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from trl_rlp import cluster, sample_completions, score_samples
from trl_rlp.evaluation import best_of_n, describe_outputs, evaluate_reward_model, kl_to_reference, mean_reward


MAX_NEW_TOKENS = 16
SFT = "sft"


class Bench:
    """
    World, prompts and measurements of one seed.

    Args:
        folder (`Path`):
            Folder for the files of the seed.
        seed (`int`):
            Seed of the world and of every draw.
        settings ([`Settings`]):
            All other settings.
    """

    def __init__(self, folder: Path, seed: int, settings: Settings):
        self.folder, self.seed, self.settings = folder, seed, settings
        self.world, self.tokenizer = World.draw(seed), make_tokenizer()
        self.training_prompts = build_prompts(TRAINING_QUESTIONS)
        self.evaluation_prompts = build_prompts(EVALUATION_QUESTIONS)
        self.unlabeled = self.training_prompts * settings.copies  # U
        self.references = write_reference_completions(self.world, self.evaluation_prompts, seed)

    def load_sft(self) -> PreTrainedModel:
        """Loads a new copy of π_SFT."""
        return AutoModelForCausalLM.from_pretrained(self.folder / SFT)

    def sample(self, policy: PreTrainedModel, prompts: list[str], n: int, temperature: float, stream: int) -> Dataset:
        """Samples n completions of each prompt. Each purpose has its own `stream` of random numbers."""
        return sample_completions(
            Dataset.from_dict({"prompt": prompts}),
            policy,
            self.tokenizer,
            num_generations=n,
            temperature=temperature,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=10 * self.seed + stream,
        )

    def compute_gold(self, prompt: str, completion: str) -> float:
        """Computes the gold reward of a completion."""
        return gold_reward(self.world, prompt, completion)

    def is_correct(self, prompt: str, completion: str) -> bool:
        """Checks whether a completion gives the correct value and no other value."""
        return is_correct(self.world, prompt, completion)

    def build_labeled_pairs(self, samples: Dataset) -> Dataset:
        """Pairs the first completion of each prompt with the next one of a different gold reward, in TRL's format."""
        rows = []
        for row in samples:
            rewards = [self.compute_gold(row["prompt"], completion) for completion in row["completions"]]
            other = next((index for index, reward in enumerate(rewards) if reward != rewards[0]), None)
            if other is None:
                continue
            best, worst = (0, other) if rewards[0] > rewards[other] else (other, 0)
            sides = {"chosen": best, "rejected": worst}
            texts = {side: row["completions"][index] for side, index in sides.items()}
            finished = {f"{side}_finished": row["finished"][index] for side, index in sides.items()}
            rows.append({"prompt": row["prompt"], **texts, **finished})
        return Dataset.from_list(rows)

    def build_human_pairs(self, sft: PreTrainedModel) -> Dataset:
        """Builds D: finished completions of π_SFT, labeled by the gold reward. A share of the labels is flipped."""
        return self._build_flipped_pairs(sft, 0, self.settings.human_pairs)

    def build_heldout_pairs(self, sft: PreTrainedModel) -> Dataset:
        """Builds human pairs for the gate, in the same way as D. They come from samples that D does not use."""
        return self._build_flipped_pairs(sft, self.settings.human_pairs, self.settings.heldout_pairs)

    def _build_flipped_pairs(self, sft: PreTrainedModel, start: int, count: int) -> Dataset:
        settings = self.settings
        copies = 1 + 4 * settings.human_pairs // len(self.training_prompts)
        samples = self.sample(sft, self.training_prompts * copies, 2, 1.0, stream=2)
        generator = np.random.default_rng([self.seed, 3])
        pairs = self.build_labeled_pairs(samples.select(generator.permutation(len(samples))))
        pairs = pairs.filter(lambda row: row["chosen_finished"] and row["rejected_finished"])
        is_flipped = generator.random(start + count) < settings.flipped
        flipped_pairs = []
        for row, flip in zip(pairs, is_flipped, strict=False):  # the samples may give fewer pairs, or more
            first, second = ("rejected", "chosen") if flip else ("chosen", "rejected")
            flipped_pairs.append({"prompt": row["prompt"], "chosen": row[first], "rejected": row[second]})
        return Dataset.from_list(flipped_pairs[start:])

    def evaluate_policy(
        self, policy: PreTrainedModel, sft: PreTrainedModel, labeler: PreTrainedModel
    ) -> dict[str, Any]:
        """Evaluates a policy on wordings that only the SFT data contains. The KL is measured at temperature 1."""
        n = max(2, self.settings.evaluation_samples)
        samples = self.sample(policy, self.evaluation_prompts, n, 0.7, stream=7)
        untempered = self.sample(policy, self.evaluation_prompts, n, 1.0, stream=9)
        pairs = [(row["prompt"], completion) for row in samples for completion in row["completions"]]
        return {
            "win_rate": float(np.mean(self.compute_wins(samples))),
            "gold": float(np.mean([self.compute_gold(*pair) for pair in pairs])),
            "right": float(np.mean([self.is_correct(*pair) for pair in pairs])),
            "malformed": float(np.mean([not parse(*pair).values for pair in pairs])),
            "proxy": mean_reward(labeler, self.tokenizer, samples),
            "kl": kl_to_reference(policy, sft, self.tokenizer, untempered),
            "characters": describe_outputs(samples)["characters"],
        }

    def compute_wins(self, samples: Dataset) -> list[list[float]]:
        """Compares the gold reward of each completion with the reference's: 1 if higher, 1/2 if equal, 0 if lower."""
        wins = []
        for row, reference in zip(samples, self.references, strict=True):
            bar = self.compute_gold(row["prompt"], reference)
            rewards = [self.compute_gold(row["prompt"], completion) for completion in row["completions"]]
            wins.append([(reward > bar) + 0.5 * (reward == bar) for reward in rewards])
        return wins

    def evaluate_best_of_n(
        self, sft: PreTrainedModel, reward_model: PreTrainedModel | None, within_majority: bool
    ) -> dict[str, float]:
        """
        Evaluates best-of-n of π_SFT, at the temperature of every evaluation.

        Only the majority can win if asked. Without a reward model, each member of the majority wins equally often.
        """
        samples = self.sample(sft, self.evaluation_prompts, self.settings.best_of_samples, 0.7, stream=8)
        if reward_model is None:
            rewards = [[0.0] * len(row["completions"]) for row in samples]
        else:
            rewards = score_samples(reward_model, self.tokenizer, samples)
        pairs = [[(row["prompt"], completion) for completion in row["completions"]] for row in samples]
        gold = [[self.compute_gold(*pair) for pair in row] for row in pairs]
        right = [[float(self.is_correct(*pair)) for pair in row] for row in pairs]
        options = {}
        if within_majority:
            options = {"cluster_ids": cluster(samples, SameValue(), complete_groups=True)["cluster_ids"][:]}
        n = self.settings.best_of
        wins, best, correct = (
            best_of_n(rewards, values, n, **options) for values in (self.compute_wins(samples), gold, right)
        )
        return {"win_rate": wins["value"], "gold": best["value"], "right": correct["value"], "kl": best["kl"]}

    def evaluate_reward_model(
        self, reward_model: PreTrainedModel, sets: dict[str, Dataset]
    ) -> dict[str, dict[str, float]]:
        """Computes accuracy and calibration on each set of labeled pairs."""
        return {name: evaluate_reward_model(reward_model, self.tokenizer, pairs) for name, pairs in sets.items()}

    def evaluate_labels(self, synthetic: Dataset) -> dict[str, Any]:
        """
        Computes how often y_w has the higher gold reward (`accuracy`), and how often it is the correct side.

        `right` counts only pairs with exactly one correct side. Their number is `decided`.
        """
        sides = ("chosen", "rejected")
        gold = [[self.compute_gold(row["prompt"], row[side]) for side in sides] for row in synthetic]
        correct = [[self.is_correct(row["prompt"], row[side]) for side in sides] for row in synthetic]
        decided = [chosen for chosen, rejected in correct if chosen != rejected]
        is_better = [(chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in gold]
        return {
            "pairs": len(synthetic),
            "accuracy": float(np.mean(is_better)),
            "decided": len(decided),
            "right": float(np.mean(decided)) if decided else None,
        }
