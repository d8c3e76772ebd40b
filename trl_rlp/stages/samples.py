"""Step 4 of Algorithm 1: samples the policy, and groups completions with the same meaning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.storage.artifacts import load_data, load_policy, save_data
from trl_rlp.storage.run_folder import SHARDS


def sample_policy(
    folder: Path,
    policy: str | Path,
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
    columns: Sequence[str] = (),
) -> dict[str, float]:
    """
    Samples P from the policy. An interrupted call resumes from the shards in the folder.

    Args:
        folder (`Path`):
            Folder for the shards and for `data`: P with `prompt`, `completions` and `finished`.
        policy (`str` or `Path`):
            Folder or Hub name of the policy π_θ, a causal LM.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U with a column `prompt`.
        sampling (`dict`):
            Further arguments of [`sample_completions`].
        columns (`Sequence[str]`, *optional*):
            Columns to keep besides `prompt`, such as the one that an equivalence reads.

    Returns:
        `dict[str, float]`: Result of [`describe_outputs`].
    """
    model, processing_class = load_policy(policy)
    prompts = prompt_dataset.select_columns(["prompt", *columns])
    samples = sample_completions(prompts, model, processing_class, output_dir=str(folder / SHARDS), **sampling)
    save_data(samples, folder)
    return describe_outputs(samples)


def group_samples(
    folder: Path, samples: Path, equivalence: Equivalence, threshold: float, complete_groups: bool
) -> dict[str, float]:
    """
    Groups the completions of each prompt by meaning. An interrupted call resumes from the shards in the folder.

    Args:
        folder (`Path`):
            Folder for the shards and for `data`: P with `cluster_ids` and `confidence`.
        samples (`Path`):
            Folder of [`sample_policy`].
        equivalence ([`Equivalence`]):
            Decides which completions mean the same.
        threshold (`float`):
            Threshold γ in [0, 1].
        complete_groups (`bool`):
            Whether to complete all groups. Views from one group need this.

    Returns:
        `dict[str, float]`: `accepted`, the share of prompts whose confidence is at least γ.
    """
    groups = cluster(
        load_data(samples),
        equivalence,
        threshold=threshold,
        complete_groups=complete_groups,
        output_dir=str(folder / SHARDS),
    )
    save_data(groups, folder)
    return {"accepted": float(np.mean(np.array(groups["confidence"]) >= threshold))}
