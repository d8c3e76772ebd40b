"""All metrics of policies that are sampled on the same prompts."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.sampling.ready_samples import find_answers
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference, require_same_ids
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
    model_options: dict[str, Any] | None = None,
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
        model_options (`dict`, *optional*):
            Further arguments of [`load_policy`].

    Returns:
        `tuple[dict, dict]`: The metrics and the samples of each policy. The metrics are those of [`describe_outputs`]
        and `kl`, in nats per completion. The reference's `kl` is 0.

    Raises:
        ValueError: If `reference` is not one of the policies, or a policy has another tokenizer, see
            [`require_same_ids`].
    """
    if reference not in policies:
        raise ValueError(f"`reference` must be one of the policies {list(policies)}, got {reference!r}.")
    prompts = prompt_dataset.select_columns(["prompt"])
    size = len(prompts) if num_kl_prompts is None else min(num_kl_prompts, len(prompts))
    metrics, samples = {}, {}
    for name, path in policies.items():
        reference_path = None if name == reference else policies[reference]
        samples[name], kl = _sample_policy(
            folder / name, path, prompts, sampling, reference_path, size, model_options or {}
        )
        metrics[name] = {**describe_outputs(samples[name], find_answers(samples[name], prompt_dataset)), "kl": kl}
    return metrics, samples


def _sample_policy(
    folder: Path,
    path: str | Path,
    prompts: Dataset,
    sampling: dict[str, Any],
    reference_path: str | Path | None,
    num_kl_prompts: int,
    model_options: dict[str, Any],
) -> tuple[Dataset, float]:
    """
    Samples a policy, and computes its KL divergence from the reference if it is not the reference itself.

    The policy is in memory only during this call, and the reference only for the KL divergence.
    """
    shards = str(folder / SHARDS)
    samples = sample_completions(prompts, path, model_options=model_options, output_dir=shards, **sampling)
    save_data(samples, folder)
    if reference_path is None:
        return samples, 0.0
    policy, processing_class = load_policy(path, **model_options)
    reference, reference_processing_class = load_policy(reference_path, **model_options)
    require_same_ids(processing_class, reference_processing_class)
    kl_samples = samples.select(range(min(num_kl_prompts, len(samples))))
    return samples, kl_to_reference(policy, reference, processing_class, kl_samples)
