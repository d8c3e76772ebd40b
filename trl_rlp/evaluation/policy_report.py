"""All metrics of policies that are sampled on the same prompts."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference
from trl_rlp.storage.artifacts import load_policy, save_data
from trl_rlp.storage.run_folder import SHARDS


def describe_policies(
    folder: Path,
    policies: dict[str, str | Path],
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
    *,
    reference: str,
    num_kl_prompts: int | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, Dataset]]:
    """
    Samples every policy on the same prompts, saves the samples, and computes their metrics.

    Args:
        folder (`Path`):
            Folder for the samples. Each policy gets a subfolder with its name.
        policies (`dict[str, str]`):
            Folder or Hub name of each policy.
        prompt_dataset ([`~datasets.Dataset`]):
            Held-out prompts. With a column `answers` (accepted answer or answers), the metrics include the accuracy.
        sampling (`dict`):
            Further arguments of [`sample_completions`].
        reference (`str`):
            Name of the policy that the KL divergence is measured from, for example `"sft"`.
        num_kl_prompts (`int`, *optional*):
            Number of prompts for the KL divergence. The first ones are used. Defaults to all prompts.

    Returns:
        `tuple[dict, dict]`: The metrics and the samples of each policy. The metrics are those of [`describe_outputs`]
        and `kl`, in nats per completion. The reference's `kl` is 0.

    Raises:
        ValueError: If `reference` is not one of the policies.
    """
    if reference not in policies:
        raise ValueError(f"`reference` must be one of the policies {list(policies)}, got {reference!r}.")
    prompts = prompt_dataset.select_columns(["prompt"])
    answers = prompt_dataset["answers"] if "answers" in prompt_dataset.column_names else None
    reference_model, _ = load_policy(policies[reference])
    metrics, samples = {}, {}
    for name, path in policies.items():
        policy, processing_class = load_policy(path)
        samples[name] = sample_completions(
            prompts, policy, processing_class, output_dir=str(folder / name / SHARDS), **sampling
        )
        save_data(samples[name], folder / name)
        metrics[name] = describe_outputs(samples[name], answers)
        size = len(prompts) if num_kl_prompts is None else min(num_kl_prompts, len(prompts))
        kl_samples = samples[name].select(range(size))
        metrics[name]["kl"] = (
            0.0 if name == reference else kl_to_reference(policy, reference_model, processing_class, kl_samples)
        )
    return metrics, samples
