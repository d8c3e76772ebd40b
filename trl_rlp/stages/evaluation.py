"""The stage after step 5 of Algorithm 1: evaluates every policy on held-out prompts."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.evaluation.policy_metrics import mean_reward
from trl_rlp.evaluation.policy_report import describe_policies
from trl_rlp.storage.artifacts import load_reward_model


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
            Folder for the samples. Each policy gets a subfolder with its name.
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
    for reward_name, path in reward_models.items():
        for name, reward in _score_policies(path, samples, max_length, model_options or {}).items():
            metrics[name][f"reward/{reward_name}"] = reward
    return metrics


def _score_policies(
    path: str | Path, samples: dict[str, Dataset], max_length: int | None, model_options: dict[str, Any]
) -> dict[str, float]:
    """Returns the mean reward of each policy. The reward model leaves the memory before the next one is loaded."""
    reward_model = load_reward_model(path, **model_options)
    return {name: mean_reward(*reward_model, rows, max_length) for name, rows in samples.items()}
