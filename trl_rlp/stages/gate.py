"""Between steps 4 and 5 of Algorithm 1: compares the refined reward model with the first one."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from trl_rlp.evaluation.gate_report import gate
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.storage.artifacts import load_data, save_data
from trl_rlp.storage.processes import process_state


logger = logging.get_logger(__name__)


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
    model_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Runs the gate, which warns about a worse reward model. The caller reads the metrics and may refuse the model.

    Args:
        folder (`Path`):
            Folder of the stage. With `answers`, they are saved in `data`, for the report of the run.
        before (`str` or `Path`):
            Folder or Hub name of the reward model r_φ.
        after (`str` or `Path`):
            Folder or Hub name of the refined reward model r̂_φ.
        human_pairs ([`~datasets.Dataset`]):
            Held-out human preferences.
        samples (`Path`):
            Folder of [`sample_policy`]. With `answers`, its completions become labeled policy pairs.
        answers (`list`, *optional*):
            Accepted answer or answers of each prompt of the samples.
        synthetic (`Path`, *optional*):
            Folder of [`make_synthetic_preferences`].
        max_length (`int`, *optional*):
            Maximum number of tokens that the reward models were trained on. Longer texts lose the beginning of their
            prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of policy pairs.
        model_options (`dict`, *optional*):
            Further arguments of [`load_reward_model`].

    Returns:
        `dict`: Result of [`GateReport.as_dict`].
    """
    policy_pairs = None
    if answers is not None:
        policy_pairs = answer_pairs(load_data(samples), answers, seed)
        save_data(Dataset.from_dict({"answers": answers}), folder)
        if not policy_pairs and process_state().is_main_process:
            logger.warning(
                "No prompt has a correct and a wrong completion, so the gate compares no policy pairs. `answers` must "
                "have the texts that the policy writes."
            )
    report = gate(
        before,
        after,
        human_pairs,
        policy_pairs if policy_pairs else None,
        load_data(synthetic) if synthetic else None,
        max_length=max_length,
        model_options=model_options,
    )
    return report.as_dict()
