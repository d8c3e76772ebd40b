"""Step 4 of Algorithm 1: from a policy and its reward model to a refined reward model, stage by stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from peft import LoraConfig

from trl_rlp.evaluation.gate import RewardModelRegression
from trl_rlp.stages.gate import compare_reward_models
from trl_rlp.stages.preferences import make_synthetic_preferences
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.stages.samples import group_samples, sample_policy
from trl_rlp.storage.artifacts import load_data
from trl_rlp.storage.run_folder import RunFolder
from trl_rlp.trainer.reward.methods import METHODS, VIEWS_FROM
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


@dataclass(frozen=True)
class RefinementSettings:
    """
    How a reward model is refined.

    Args:
        base_model (`str` or `Path`):
            What it starts from, with a fresh score head: where the first reward model started.
        config ([`RLPRewardConfig`]):
            The trainer's settings, `method` included.
        args (`dict`):
            The fields that `config` was made of, without `output_dir` and `method`.
        sampling (`dict`):
            Arguments of [`sample_completions`].
        peft_config (`LoraConfig`, *optional*):
            Trains an adapter, which is merged before saving.
        on_regression (`str`, *optional*, defaults to `"warn"`):
            What the gate does when the refined model is worse.
        seed (`int`, *optional*, defaults to `42`):
            Decides pairs.
    """

    base_model: str | Path
    config: RLPRewardConfig
    args: dict[str, Any]
    sampling: dict[str, Any]
    peft_config: LoraConfig | None = None
    on_regression: str = "warn"
    seed: int = 42


class Refinement(NamedTuple):
    """Folders of P, of D̂ (`None` without SPG), and of r̂."""

    samples: Path
    synthetic: Path | None
    reward_model: Path


def refine_reward_model(
    run: RunFolder,
    settings: RefinementSettings,
    policy: Path,
    reward_model: Path,
    prompt_dataset: Dataset,
    equivalence: Any | None,
    preferences: Dataset,
    heldout: Dataset,
) -> Refinement:
    """
    Samples P from π, makes D̂ where the method has it, and retrains the reward model by Eq. 1; then comes the gate.

    Args:
        run ([`RunFolder`]):
            Where the stages are.
        settings ([`RefinementSettings`]):
            How.
        policy (`Path`):
            π_θ.
        reward_model (`Path`):
            r_φ, which picks y_w and is what the gate compares with.
        prompt_dataset (`datasets.Dataset`):
            U, with `answers` where they are known, which label pairs for the gate.
        equivalence (*optional*):
            Which outputs mean the same, see `trl_rlp.data.groups`. For SPG and views of one group.
        preferences (`datasets.Dataset`):
            D.
        heldout (`datasets.Dataset`):
            Human pairs for the gate.

    Returns:
        [`Refinement`].

    Raises:
        RewardModelRegression: if the gate refuses.

    Reference:
        Lang, Huang, Li 2024, https://arxiv.org/abs/2403.19279, Algorithm 1, step 4, and Eq. 1.
    """
    terms = METHODS[settings.config.method]
    samples = _policy_samples(run, settings, policy, prompt_dataset, equivalence)
    synthetic = None
    if terms.synthetic:
        synthetic = run.stage(
            "synthetic_preferences",
            make_synthetic_preferences,
            groups=samples,
            reward_model=reward_model,
            config=settings.config,
            seed=settings.seed,
        )
    refined = run.stage(
        "refined_reward_model",
        train_reward_model,
        base_model=settings.base_model,
        preference_dataset=preferences,
        args={**settings.args, "method": settings.config.method},
        peft_config=settings.peft_config,
        policy_samples=load_data(samples) if terms.views else None,
        synthetic_dataset=load_data(synthetic) if synthetic else None,
    )
    run.stage(
        "gate",
        compare_reward_models,
        before=reward_model,
        after=refined,
        human_pairs=heldout,
        samples=samples,
        answers=list(prompt_dataset["answers"]) if "answers" in prompt_dataset.column_names else None,
        synthetic=synthetic,
        max_length=settings.config.max_length,
        seed=settings.seed,
    )
    _require_gate(run, settings)
    return Refinement(samples, synthetic, refined)


def _require_gate(run: RunFolder, settings: RefinementSettings) -> None:
    """Refuses outside of the stage, whose figures stay: a later call may ask for something else."""
    report = run.figures("gate")
    if settings.on_regression == "raise" and not report["passed"]:
        raise RewardModelRegression(f"The gate refused the refined reward model: {'; '.join(report['problems'])}")


def _policy_samples(
    run: RunFolder, settings: RefinementSettings, policy: Path, prompt_dataset: Dataset, equivalence: Any | None
) -> Path:
    """P, in groups where the method needs them."""
    samples = run.stage(
        "policy_samples", sample_policy, policy=policy, prompt_dataset=prompt_dataset, sampling=settings.sampling
    )
    if not settings.config.needs_groups:
        return samples
    return run.stage(
        "groups",
        group_samples,
        samples=samples,
        equivalence=equivalence,
        threshold=settings.config.confidence_threshold,
        complete_groups=VIEWS_FROM[settings.config.views_from],
    )
