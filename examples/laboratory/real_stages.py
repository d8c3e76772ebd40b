"""Stages of the experiment on a real language model. Each stage writes its folder and returns its metrics."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp import ExactMatch, sample_completions, score_samples, synthesize_preferences
from trl_rlp.data.judges import language_model_judge
from trl_rlp.evaluation import answer_pairs, best_of_n, evaluate_reward_model
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.storage.artifacts import load_data, load_policy, load_reward_model, save_data
from trl_rlp.storage.run_folder import SHARDS


GENERATORS = ("spg", "select_all", "reward", "rlaif")
CONFIDENCES = (0.0, 0.3, 0.5, 0.7, 0.9, 1.01)
"""Edges of the confidence bins of the label accuracy."""


def sample_questions(folder: Path, policy: Path, questions: Dataset, sampling: dict[str, Any]) -> dict[str, float]:
    """Samples a policy. Returns the number of questions and the share of correct completions."""
    model, processing_class = load_policy(policy)
    samples = sample_completions(
        questions.select_columns(["prompt"]), model, processing_class, output_dir=str(folder / SHARDS), **sampling
    )
    samples = samples.add_column("answers", questions["answers"][:])
    save_data(samples, folder)
    return {"questions": len(samples), "right": float(np.mean(mark_correct(samples)))}


def mark_correct(samples: Dataset) -> np.ndarray:
    """Returns 1 for each correct completion and 0 for the others, as an array of shape `(questions, n)`."""
    return np.array([[float(is_correct(text, row["answers"])) for text in row["completions"]] for row in samples])


def build_synthetic_preferences(
    folder: Path, samples: Path, policy: Path, reward_model: Path, seed: int
) -> dict[str, Any]:
    """Builds synthetic preferences with every generator, and compares their labels with the known answers."""
    rows = load_data(samples)
    model, reward_processing_class = load_reward_model(reward_model)
    judge = language_model_judge(*load_policy(policy))
    metrics = {}
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
        metrics[name] = {**evaluate_labels(synthetic, rows), "rejections": rejections}
    metrics["rlaif"] |= {"asked": judge.asked, "unreadable": judge.unreadable}
    return metrics


def evaluate_labels(synthetic: Dataset, samples: Dataset) -> dict[str, Any]:
    """
    Computes how often the chosen side is correct, over all pairs and by confidence.

    Only pairs with exactly one correct side count. Their number is `decided`.
    """
    decided = []  # (confidence, whether the chosen side is correct)
    for pair in synthetic:
        answers = samples[pair["sample_row"]]["answers"]
        sides = [is_correct(pair[side], answers) for side in ("chosen", "rejected")]
        if sides[0] != sides[1]:
            decided.append((pair["confidence"], sides[0]))
    metrics: dict[str, Any] = {"pairs": len(synthetic), "decided": len(decided)}
    metrics["accuracy"] = float(np.mean([chosen for _, chosen in decided])) if decided else None
    if decided and decided[0][0] is not None:
        bins = np.digitize([confidence for confidence, _ in decided], CONFIDENCES) - 1
        chosen = np.array([chosen for _, chosen in decided])
        metrics["by_confidence"] = {
            f"{CONFIDENCES[index]:g}": [float(chosen[bins == index].mean()), int((bins == index).sum())]
            for index in sorted(set(bins))
        }
    return metrics


def evaluate_on_policy_pairs(folder: Path, reward_model: Path, samples: Path, seed: int) -> dict[str, Any]:
    """Evaluates a reward model on pairs of completions of held-out questions, and by best-of-n."""
    rows = load_data(samples)
    model, processing_class = load_reward_model(reward_model)
    pairs = answer_pairs(rows.remove_columns("answers"), rows["answers"][:], seed)
    rewards = score_samples(model, processing_class, rows)
    correct = mark_correct(rows)
    return {
        "policy_pairs": evaluate_reward_model(model, processing_class, pairs),
        "best_of_n": {str(n): best_of_n(rewards, correct, n)["value"] for n in (1, 4, correct.shape[1])},
        "at_best": float((correct.max(axis=1) > 0).mean()),
    }


def evaluate_on_human_pairs(folder: Path, reward_models: dict[str, Path], pairs: Dataset) -> dict[str, float]:
    """Computes the accuracy of every reward model on held-out human pairs without flipped labels."""
    accuracy = {}
    for name, path in reward_models.items():
        accuracy[name] = evaluate_reward_model(*load_reward_model(path), pairs)["accuracy"]
    return accuracy
