"""The data steps of Algorithm 1: each writes a data set to a folder and returns its figures."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.evaluation.gate import gate
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference, mean_reward
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.storage.artifacts import load_data, load_policy, load_reward_model, save_data
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


SHARDS = "shards"


def _draw(folder: Path, policy: str | Path, prompts: Dataset, sampling: dict[str, Any]) -> Dataset:
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
    samples = _draw(folder, policy, prompt_dataset, sampling)
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


def make_synthetic_preferences(
    folder: Path, groups: Path, reward_model: str | Path, config: RLPRewardConfig, seed: int
) -> dict[str, int]:
    """
    Step 4 of Algorithm 1: makes D̂ from groups of outputs and the frozen r_φ.

    Args:
        folder (`Path`):
            Where `data` goes: D̂ in TRL's preference format, with its audit columns.
        groups (`Path`):
            Folder of [`group_samples`].
        reward_model (`str` or `Path`):
            r_φ, which picks y_w.
        config ([`RLPRewardConfig`]):
            γ, how y_w is picked, whether y_l is drawn anew each epoch, and how long a text the model reads.
        seed (`int`):
            Seed of y_l.

    Returns:
        `dict[str, int]`: how many instructions were accepted, and how many rejected for which reason.
    """
    model, processing_class = load_reward_model(reward_model)
    synthetic, counts = synthesize_preferences(
        load_data(groups),
        "spg",
        reward_model=model,
        reward_processing_class=processing_class,
        threshold=config.confidence_threshold,
        chosen=config.chosen,
        keep_candidates=config.redraw_rejected,
        max_length=config.max_length,
        seed=seed,
    )
    save_data(synthetic, folder)
    return {"accepted": len(synthetic), **counts}


def compare_reward_models(
    folder: Path,
    before: str | Path,
    after: str | Path,
    human_pairs: Dataset,
    samples: Path,
    answers: list | None = None,
    synthetic: Path | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Between steps 4 and 5: the gate, which warns; refusing is for who reads its figures.

    Args:
        folder (`Path`):
            Not written to.
        before (`str` or `Path`), after (`str` or `Path`):
            r_φ and r̂_φ.
        human_pairs (`datasets.Dataset`):
            Held-out human preferences.
        samples (`Path`):
            Folder of [`sample_policy`], whose outputs make labeled policy pairs where `answers` are known.
        answers (`list`, *optional*):
            Accepted answer or answers, one entry a row of the samples.
        synthetic (`Path`, *optional*):
            Folder of [`make_synthetic_preferences`].
        max_length (`int`, *optional*):
            Tokens that the reward models were trained on at most; more lose the beginning of their prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the policy pairs.

    Returns:
        `dict`: [`GateReport.as_dict`].
    """
    policy_pairs = None if answers is None else answer_pairs(load_data(samples), answers, seed)
    report = gate(
        load_reward_model(before),
        load_reward_model(after),
        human_pairs,
        policy_pairs if policy_pairs else None,
        load_data(synthetic) if synthetic else None,
        max_length=max_length,
    )
    return report.as_dict()


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
        samples[name] = _draw(folder / name, path, prompt_dataset, sampling)
        save_data(samples[name], folder / name)
        policy, processing_class = load_policy(path)
        figures[name] = describe_outputs(samples[name], answers)
        figures[name]["kl"] = kl_to_reference(policy, reference, processing_class, samples[name])
    for reward_name, path in reward_models.items():
        reward_model = load_reward_model(path)
        for name in policies:
            figures[name][f"reward/{reward_name}"] = mean_reward(*reward_model, samples[name], max_length)
    return figures
