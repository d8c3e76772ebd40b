"""What a quickstart run came to: every number of its page, from the models and data that the run left."""

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.quickstart.model_outcome import compare_rewards, evaluate_policies
from trl_rlp.quickstart.question_outcome import by_kind, describe_questions, label_accuracy
from trl_rlp.storage.artifacts import load_data, load_reward_model


def measure(
    folder: Path,
    models: dict[str, Path],
    samples: Path,
    synthetic: Path | None,
    unlabeled: Dataset,
    heldout: Dataset,
    heldout_preferences: Dataset,
    threshold: float,
    sampling: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """
    Measures what Algorithm 1 left.

    Args:
        folder (`Path`):
            Where the outputs of the policies go.
        models (`dict[str, Path]`):
            `sft`, `policy`, `retrained_policy`, `reward_model`, `refined_reward_model`.
        samples (`Path`):
            Folder of P.
        synthetic (`Path` or `None`):
            Folder of D̂; without one, D̂ is made for the page alone.
        unlabeled (`datasets.Dataset`), heldout (`datasets.Dataset`):
            Questions with `prompt`, `answers`, `kind`, `question`.
        heldout_preferences (`datasets.Dataset`):
            Human pairs on the held-out questions, with no label flipped.
        threshold (`float`):
            γ.
        sampling (`dict`):
            How the policies are sampled.
        seed (`int`):
            Decides pairs.

    Returns:
        `dict` with `policies`, `rewards`, `synthetic`, `questions`, `kinds`.
    """
    policies = {name: models[name] for name in ("sft", "policy", "retrained_policy")}
    evaluation = evaluate_policies(folder, policies, heldout, sampling)
    answers = list(unlabeled["answers"])
    outputs = load_data(samples).select_columns(["prompt", "completions", "finished"])
    made = {"equivalence": ExactMatch(), "chosen": "random", "seed": seed}
    preferences = (
        load_data(synthetic)
        if synthetic is not None
        else synthesize_preferences(outputs, "spg", threshold=threshold, **made)[0]
    )
    everything, _ = synthesize_preferences(outputs, "select_all", **made)
    policy_pairs = answer_pairs(load_data(folder / "policy"), list(heldout["answers"]), seed)
    known = unlabeled.select_columns(["answers", "kind", "question"])
    labeled = concatenate_datasets([outputs, known], axis=1)
    rows = describe_questions(labeled, preferences, threshold)
    return {
        "policies": evaluation,
        "rewards": compare_rewards(
            load_reward_model(models["reward_model"]),
            load_reward_model(models["refined_reward_model"]),
            {"human, no label flipped": heldout_preferences, "policy, held-out questions": policy_pairs},
        ),
        "synthetic": {"spg": label_accuracy(preferences, answers), "select_all": label_accuracy(everything, answers)},
        "questions": rows,
        "kinds": by_kind(rows),
    }
