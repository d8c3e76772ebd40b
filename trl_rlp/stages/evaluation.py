"""After step 5 of Algorithm 1: samples every policy on the same prompts, and describes what it says."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference, mean_reward
from trl_rlp.stages.samples import draw_samples
from trl_rlp.storage.artifacts import load_policy, load_reward_model, save_data


def evaluate_policies(
    folder: Path,
    policies: dict[str, str | Path],
    reward_models: dict[str, str | Path],
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
    max_length: int | None = None,
) -> dict[str, dict[str, float]]:
    """
    After step 5: samples every policy on the same prompts and describes what it says.

    Args:
        folder (`Path`):
            Where the outputs go, one folder a policy.
        policies (`dict`):
            Name to folder or Hub name; the entry `"sft"` is the reference of the KL.
        reward_models (`dict`):
            Name to folder or Hub name; each scores each policy.
        prompt_dataset (`datasets.Dataset`):
            Held-out prompts; a column `answers` (accepted answer or answers) adds the accuracy.
        sampling (`dict`):
            Further arguments of [`sample_completions`].
        max_length (`int`, *optional*):
            Tokens that the reward models were trained on at most.

    Returns:
        `dict`: a policy's figures by its name: those of
        [`describe_outputs`], `kl` in nats an output, `reward/<name>`.
    """
    answers = prompt_dataset["answers"] if "answers" in prompt_dataset.column_names else None
    figures, samples = {}, {}
    reference, _ = load_policy(policies["sft"])
    for name, path in policies.items():
        samples[name] = draw_samples(folder / name, path, prompt_dataset, sampling)
        save_data(samples[name], folder / name)
        policy, processing_class = load_policy(path)
        figures[name] = describe_outputs(samples[name], answers)
        figures[name]["kl"] = kl_to_reference(policy, reference, processing_class, samples[name])
    for reward_name, path in reward_models.items():
        reward_model = load_reward_model(path)
        for name in policies:
            figures[name][f"reward/{reward_name}"] = mean_reward(*reward_model, samples[name], max_length)
    return figures
