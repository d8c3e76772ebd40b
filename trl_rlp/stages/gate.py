"""Between steps 4 and 5 of Algorithm 1: is the refined reward model worse?"""

from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.evaluation.gate import gate
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.storage.artifacts import load_data, load_reward_model


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
