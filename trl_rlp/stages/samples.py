"""Step 4 of Algorithm 1: samples the policy, and groups completions with the same meaning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.groups.equivalence import Equivalence, release_after
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.sampling.ready_samples import SampleSource, take_samples
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.storage.artifacts import load_data, save_data
from trl_rlp.storage.run_folder import SHARDS


def sample_policy(
    folder: Path,
    policy: str | Path,
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
    columns: Sequence[str] = (),
    model_options: dict[str, Any] | None = None,
    policy_samples: SampleSource | None = None,
) -> dict[str, float]:
    """
    Samples P from the policy, or takes samples that were made elsewhere.

    An interrupted call resumes from the shards in the folder.

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
        model_options (`dict`, *optional*):
            Further arguments of [`load_policy`].
        policy_samples ([`~datasets.Dataset`] or `Callable`, *optional*):
            Ready samples, or a function from prompts to samples, instead of sampling.

    Returns:
        `dict[str, float]`: Result of [`describe_outputs`].
    """
    if policy_samples is None:
        prompts = prompt_dataset.select_columns(["prompt", *columns])
        shards = str(folder / SHARDS)
        samples = sample_completions(prompts, policy, model_options=model_options, output_dir=shards, **sampling)
    else:
        options = sampling.get("chat_template_kwargs")
        samples = take_samples(policy_samples, prompt_dataset, list(columns), options)
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
            Decides which completions mean the same. Its model is released at the end.
        threshold (`float`):
            Threshold γ in [0, 1].
        complete_groups (`bool`):
            Whether to complete all groups. Views from one group need this.

    Returns:
        `dict[str, float]`: `accepted`, the share of prompts whose confidence is at least γ, and `threshold`, γ.
    """
    with release_after(equivalence):
        groups = cluster(
            load_data(samples),
            equivalence,
            threshold=threshold,
            complete_groups=complete_groups,
            output_dir=str(folder / SHARDS),
        )
    save_data(groups, folder)
    return {"accepted": float(np.mean(np.array(groups["confidence"]) >= threshold)), "threshold": threshold}
