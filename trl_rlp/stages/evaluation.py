"""The stage after step 5 of Algorithm 1: evaluates every policy on held-out prompts."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.scoring import score_samples
from trl_rlp.evaluation.policy_report import describe_policies
from trl_rlp.storage.artifacts import load_reward_model
from trl_rlp.storage.json_files import write_json
from trl_rlp.storage.processes import process_state


def evaluate_policies(
    folder: Path,
    policies: dict[str, str | Path],
    reward_models: dict[str, str | Path],
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
    max_length: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """
    Samples every policy on the same prompts, and computes the metrics of the samples and their mean rewards.

    Args:
        folder (`Path`):
            Folder for the samples. Each policy gets a subfolder with its name. Its `rewards.json` has the rewards
            of its completions by reward model, for the report of the run.
        policies (`dict[str, str]`):
            Folder or Hub name of each policy. The policy `"sft"` is the reference of the KL divergence.
        reward_models (`dict[str, str]`):
            Folder or Hub name of each reward model. Each one scores all policies.
        prompt_dataset ([`~datasets.Dataset`]):
            Held-out prompts. With a column `answers` (accepted answer or answers), the metrics include the accuracy.
        sampling (`dict`):
            Further arguments of [`sample_completions`].
        max_length (`int`, *optional*):
            Maximum number of tokens that the reward models were trained on.
        model_options (`dict`, *optional*):
            Further arguments of [`load_policy`] and [`load_reward_model`].

    Returns:
        `dict`: Metrics of each policy: those of [`describe_outputs`], `kl` in nats per completion, and
        `reward/<reward model>`.
    """
    metrics, samples = describe_policies(
        folder, policies, prompt_dataset, sampling, reference="sft", model_options=model_options
    )
    rewards: dict[str, dict[str, list[list[float]]]] = {name: {} for name in policies}
    for reward_name, path in reward_models.items():
        for name, values in _score_policies(path, samples, max_length, model_options or {}).items():
            rewards[name][reward_name] = values
            metrics[name][f"reward/{reward_name}"] = float(np.mean(values))
    if process_state().is_main_process:
        for name, values in rewards.items():
            write_json(folder / name / "rewards.json", values)
    return metrics


def _score_policies(
    path: str | Path, samples: dict[str, Dataset], max_length: int | None, model_options: dict[str, Any]
) -> dict[str, list[list[float]]]:
    """Returns the rewards of each policy. The reward model leaves the memory before the next one is loaded."""
    reward_model = load_reward_model(path, **model_options)
    return {name: score_samples(*reward_model, rows, max_length=max_length) for name, rows in samples.items()}
