"""All numbers on the page of a quickstart run, measured on the models and data that the run saved."""

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.quickstart.model_outcome import compare_rewards, measure_policies
from trl_rlp.quickstart.question_outcome import describe_questions, label_accuracy, summarize_kinds
from trl_rlp.storage.artifacts import load_data


def measure_outcome(
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
    Measures the results of Algorithm 1.

    Args:
        folder (`Path`):
            Folder for the completions of the policies.
        models (`dict[str, Path]`):
            Folders of `sft`, `policy`, `retrained_policy`, `reward_model` and `refined_reward_model`.
        samples (`Path`):
            Folder of the policy samples P.
        synthetic (`Path` or `None`):
            Folder of the synthetic preferences D̂. If `None`, D̂ is built for the page only.
        unlabeled ([`~datasets.Dataset`]), heldout ([`~datasets.Dataset`]):
            Questions with `prompt`, `answers`, `kind` and `question`.
        heldout_preferences ([`~datasets.Dataset`]):
            Human pairs on the held-out questions, without flipped labels.
        threshold (`float`):
            Threshold γ, in [0, 1].
        sampling (`dict`):
            Arguments for sampling the policies.
        seed (`int`):
            Seed for choosing the pairs.

    Returns:
        `dict`: The keys are `policies`, `rewards`, `synthetic`, `questions` and `kinds`.
    """
    policies = {name: models[name] for name in ("sft", "policy", "retrained_policy")}
    evaluation = measure_policies(folder, policies, heldout, sampling)
    answers = list(unlabeled["answers"])
    policy_samples = load_data(samples).select_columns(["prompt", "completions", "finished"])
    settings = {"equivalence": ExactMatch(), "chosen": "random", "seed": seed}
    preferences = (
        load_data(synthetic)
        if synthetic is not None
        else synthesize_preferences(policy_samples, "spg", threshold=threshold, **settings)[0]
    )
    all_preferences, _ = synthesize_preferences(policy_samples, "select_all", **settings)
    policy_pairs = answer_pairs(load_data(folder / "policy"), list(heldout["answers"]), seed)
    known = unlabeled.select_columns(["answers", "kind", "question"])
    labeled = concatenate_datasets([policy_samples, known], axis=1)
    rows = describe_questions(labeled, preferences, threshold)
    return {
        "policies": evaluation,
        "rewards": compare_rewards(
            models["reward_model"],
            models["refined_reward_model"],
            {"human, no label flipped": heldout_preferences, "policy, held-out questions": policy_pairs},
        ),
        "synthetic": {
            "spg": label_accuracy(preferences, answers),
            "select_all": label_accuracy(all_preferences, answers),
        },
        "questions": rows,
        "kinds": summarize_kinds(rows),
    }
