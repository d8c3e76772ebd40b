"""Reward functions of the experiment with policies on a real model, and a record of what anchors call the same."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp import (
    RefinableReward,
    RewardFunction,
    SemanticAnchorReward,
    load_policy,
    load_reward_model,
    score,
    score_samples,
)
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.quickstart import compute_accuracies


class KnownAnswers:
    """
    Rewards a completion that equals a known answer. The rewards have mean 0 and standard deviation 1 on the samples.

    Args:
        samples (`datasets.Dataset`):
            Fixed samples of π_SFT, with `answers`.
    """

    def __init__(self, samples: Dataset):
        self.__name__ = "known_answers"
        self.mean = float(np.mean(compute_accuracies(samples, samples["answers"][:])))
        self.standard_deviation = (self.mean * (1 - self.mean)) ** 0.5
        if not self.standard_deviation:
            raise ValueError(f"A share of {self.mean:g} of the samples is correct, so the reward has no scale.")

    def __call__(self, completions: list[str], answers: list[list[str]], **kwargs: Any) -> list[float]:
        return [(mark - self.mean) / self.standard_deviation for mark in mark_known_answers(completions, answers)]


def mark_known_answers(completions: list[str], answers: list[list[str]], **kwargs: Any) -> list[float]:
    """Returns 1 for each completion that equals a known answer, and 0 for the others. Its name appears in the log."""
    return [float(is_correct(*pair)) for pair in zip(completions, answers, strict=True)]


def load_scaled_reward(folder: Path, sft: Path, samples: Dataset) -> RefinableReward:
    """Loads a reward model as a reward function with mean 0 and standard deviation 1 on fixed samples of π_SFT."""
    model, processing_class = load_reward_model(folder)
    rewards = score_samples(model, processing_class, samples)
    return RefinableReward(
        model,
        processing_class,
        [load_policy(sft)[1].eos_token_id],
        mean=float(np.mean(rewards)),
        standard_deviation=float(np.std(rewards)),
        require_finite=False,
    )


def compute_mean_reward(reward: RewardFunction, samples: Dataset) -> float:
    """Computes the mean scaled reward of all completions. Equal completions of a prompt are scored once."""
    counts = Counter(
        (row["prompt"], *completion)
        for row in samples
        for completion in zip(row["completions"], row["finished"], strict=True)
    )
    prompts, completions, finished = map(list, zip(*counts, strict=True))
    rewards = score(reward.model, reward.processing_class, prompts, completions, finished)
    mean = np.average(rewards, weights=list(counts.values()))
    return float((mean - reward.mean) / reward.standard_deviation)


class RecordedAnchorReward:
    """
    An anchor reward that records, for each rollout, which completions it called the same and which are correct.

    Args:
        reward ([`SemanticAnchorReward`]):
            The anchor reward.

    Attributes:
        rollouts (`list[list[dict]]`):
            For each rollout one entry per completion with an anchor: `prompt`, `completion`, `same` and `right`.
    """

    def __init__(self, reward: SemanticAnchorReward):
        self.reward = reward
        self.__name__ = reward.__name__
        self.rollouts: list[list[dict[str, Any]]] = []

    def __call__(
        self, prompts: list[str], completions: list[str], answers: list[list[str]], **kwargs: Any
    ) -> list[float | None]:
        rewards = self.reward(prompts, completions, **kwargs)
        verdicts = self.reward.comparison.compare({"prompt": list(prompts), "completion": completions})
        marks = mark_known_answers(completions, answers)
        columns = zip(prompts, completions, verdicts, marks, strict=True)
        self.rollouts.append(
            [
                {"prompt": str(prompt), "completion": completion, "same": verdict, "right": bool(mark)}
                for prompt, completion, verdict, mark in columns
                if verdict is not None
            ]
        )
        return rewards


def summarize_verdicts(rollouts: list[list[dict[str, Any]]], window: int) -> list[dict[str, Any]]:
    """
    Counts, for each window of rollouts, the completions with an anchor, those called the same, and the wrong ones
    among the latter, which the known answers contradict.
    """
    windows = [sum(rollouts[start : start + window], []) for start in range(0, len(rollouts), window)]
    return [
        {
            "anchored": len(rows),
            "same": sum(row["same"] for row in rows),
            "contradicted": sum(row["same"] and not row["right"] for row in rows),
        }
        for rows in windows
    ]
