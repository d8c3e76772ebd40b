"""Step 4 of Algorithm 1: samples of the policy, and their groups of equal meaning."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.storage.artifacts import load_data, load_policy, save_data


SHARDS = "shards"


def draw_samples(folder: Path, policy: str | Path, prompts: Dataset, sampling: dict[str, Any]) -> Dataset:
    model, processing_class = load_policy(policy)
    return sample_completions(
        prompts.select_columns(["prompt"]), model, processing_class, output_dir=str(folder / SHARDS), **sampling
    )


def sample_policy(
    folder: Path, policy: str | Path, prompt_dataset: Dataset, sampling: dict[str, Any]
) -> dict[str, float]:
    """
    Step 4 of Algorithm 1: samples P from the policy, going on from the shards in the folder.

    Args:
        folder (`Path`):
            Where `data` (P: `prompt`, `completions`, `finished`) and the shards go.
        policy (`str` or `Path`):
            π_θ: folder or Hub name of a causal LM.
        prompt_dataset (`datasets.Dataset`):
            U: a `prompt` column.
        sampling (`dict`):
            Further arguments of [`sample_completions`].

    Returns:
        `dict[str, float]`: [`describe_outputs`].
    """
    samples = draw_samples(folder, policy, prompt_dataset, sampling)
    save_data(samples, folder)
    return describe_outputs(samples)


def group_samples(
    folder: Path, samples: Path, equivalence: Any, threshold: float, complete_groups: bool
) -> dict[str, float]:
    """
    Step 4 of Algorithm 1: groups the outputs of each instruction by meaning.

    Args:
        folder (`Path`):
            Where `data` goes: P with `cluster_ids` and `confidence`.
        samples (`Path`):
            Folder of [`sample_policy`].
        equivalence:
            See `trl_rlp.data.groups`.
        threshold (`float`):
            γ in [0, 1].
        complete_groups (`bool`):
            Whether to finish all groups, which views of one group need.

    Returns:
        `dict[str, float]`: `accepted`, the share of instructions whose confidence reaches γ.
    """
    groups = cluster(load_data(samples), equivalence, threshold=threshold, complete_groups=complete_groups)
    save_data(groups, folder)
    return {"accepted": float(np.mean(np.array(groups["confidence"]) >= threshold))}
