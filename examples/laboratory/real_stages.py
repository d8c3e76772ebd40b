"""What is done to a real language model for one seed: each stage writes its folder and returns its figures."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp import (
    ExactMatch,
    answer_pairs,
    best_of_n,
    evaluate_reward_model,
    language_model_judge,
    sample_completions,
    score_samples,
    synthesize_preferences,
)
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.storage.artifacts import load_data, load_policy, load_reward_model, save_data


GENERATORS = ("spg", "select_all", "reward", "rlaif")
CONFIDENCES = (0.0, 0.3, 0.5, 0.7, 0.9, 1.01)
"""Edges of the bins in which label accuracy is given by confidence."""


def draw(folder: Path, policy: Path, questions: Dataset, sampling: dict[str, Any]) -> dict[str, float]:
    """Samples a policy, and says how often it is right."""
    model, processing_class = load_policy(policy)
    samples = sample_completions(
        questions.select_columns(["prompt"]), model, processing_class, output_dir=str(folder / "shards"), **sampling
    )
    samples = samples.add_column("answers", questions["answers"][:])
    save_data(samples, folder)
    return {"questions": len(samples), "right": float(np.mean(right_outputs(samples)))}


def right_outputs(samples: Dataset) -> np.ndarray:
    """Whether each output is right: `(questions, n)`."""
    return np.array([[float(is_correct(text, row["answers"])) for text in row["completions"]] for row in samples])


def label(folder: Path, samples: Path, policy: Path, reward_model: Path, seed: int) -> dict[str, Any]:
    """Makes synthetic preferences by every generator, and holds them to the known answers."""
    rows = load_data(samples)
    model, reward_processing_class = load_reward_model(reward_model)
    judge = language_model_judge(*load_policy(policy))
    figures = {}
    for name in GENERATORS:
        synthetic, rejections = synthesize_preferences(
            rows.remove_columns("answers"),
            name,
            equivalence=ExactMatch(),
            reward_model=model,
            reward_processing_class=reward_processing_class,
            judge=judge,
            seed=seed,
        )
        save_data(synthetic, folder / name)
        figures[name] = {**label_accuracy(synthetic, rows), "rejections": rejections}
    figures["rlaif"] |= {"asked": judge.asked, "unreadable": judge.unreadable}
    return figures


def label_accuracy(synthetic: Dataset, samples: Dataset) -> dict[str, Any]:
    """How often the chosen side is the right one, of the pairs of which one side is right; also by confidence."""
    decided = []  # (confidence, whether the right side was chosen)
    for pair in synthetic:
        answers = samples[pair["sample_row"]]["answers"]
        sides = [is_correct(pair[side], answers) for side in ("chosen", "rejected")]
        if sides[0] != sides[1]:
            decided.append((pair["confidence"], sides[0]))
    figures: dict[str, Any] = {"pairs": len(synthetic), "decided": len(decided)}
    figures["accuracy"] = float(np.mean([chosen for _, chosen in decided])) if decided else None
    if decided and decided[0][0] is not None:
        bins = np.digitize([confidence for confidence, _ in decided], CONFIDENCES) - 1
        chosen = np.array([chosen for _, chosen in decided])
        figures["by_confidence"] = {
            f"{CONFIDENCES[place]:g}": [float(chosen[bins == place].mean()), int((bins == place).sum())]
            for place in sorted(set(bins))
        }
    return figures


def judge_reward_model(folder: Path, reward_model: Path, samples: Path, seed: int) -> dict[str, Any]:
    """A reward model on pairs of outputs to held-out questions, and what best-of-n reaches with it."""
    rows = load_data(samples)
    model, processing_class = load_reward_model(reward_model)
    pairs = answer_pairs(rows.remove_columns("answers"), rows["answers"][:], seed)
    rewards = score_samples(model, processing_class, rows)
    worth = right_outputs(rows)
    return {
        "policy_pairs": evaluate_reward_model(model, processing_class, pairs),
        "best_of_n": {str(n): best_of_n(rewards, worth, n)["value"] for n in (1, 4, worth.shape[1])},
        "at_best": float((worth.max(axis=1) > 0).mean()),
    }


def human_accuracy(folder: Path, reward_models: dict[str, Path], pairs: Dataset) -> dict[str, float]:
    """Every reward model on held-out human pairs whose flipped labels were put right."""
    figures = {}
    for name, path in reward_models.items():
        figures[name] = evaluate_reward_model(*load_reward_model(path), pairs)["accuracy"]
    return figures
