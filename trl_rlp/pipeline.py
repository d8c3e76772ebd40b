"""Algorithm 1 of RLP, from human preferences to a policy retrained against a refined reward model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.data.preferences.holdout import hold_out
from trl_rlp.data.turns import require_no_assistant_prefill
from trl_rlp.data.validation import require_answers, require_columns, require_prompts
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.stages.evaluation import evaluate_policies
from trl_rlp.stages.policy import train_policy
from trl_rlp.stages.refinement_stage import RefinementSettings, refine_reward_model
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.storage.fingerprints import value_fingerprint
from trl_rlp.storage.run_folder import RunFolder


@dataclass
class RLPResult:
    """
    Where a run left its models and data, and what it measured.

    Args:
        reward_model (`Path`):
            r_φ: a plain sequence classifier.
        policy (`Path`):
            π_θ: a plain causal LM.
        policy_samples (`Path`):
            P: folder whose `data` holds `prompt`, `completions`, `finished`, and where they were grouped `cluster_ids`
            and `confidence`. Read it with [`load_data`].
        synthetic_preferences (`Path` or `None`):
            D̂, likewise. `None` without SPG.
        refined_reward_model (`Path`):
            r̂_φ: a plain sequence classifier.
        retrained_policy (`Path`):
            π̂_θ: a plain causal LM.
        stages (`dict`):
            `figures` and `seconds` of each stage, by its name.
    """

    reward_model: Path
    policy: Path
    policy_samples: Path
    synthetic_preferences: Path | None
    refined_reward_model: Path
    retrained_policy: Path
    stages: dict[str, dict[str, Any]]


def run_rlp(
    config: RLPConfig,
    preference_dataset: Dataset,
    prompt_dataset: Dataset,
    equivalence: Any | None = None,
    eval_preference_dataset: Dataset | None = None,
    eval_prompt_dataset: Dataset | None = None,
) -> RLPResult:
    """
    Runs Algorithm 1: trains r, trains π, samples, refines r, retrains π from π_SFT; then evaluates.

    Each stage writes its result whole or not at all under `config.output_dir`; a second call with the same settings
    and data takes what is finished and goes on with what is not.

    Args:
        config ([`RLPConfig`]):
            Settings.
        preference_dataset (`datasets.Dataset`):
            D: human preferences in TRL's format (`prompt`, `chosen`, `rejected`).
        prompt_dataset (`datasets.Dataset`):
            U: unlabeled instructions, a `prompt` column. A column `answers` (accepted answer or answers) is never
            trained on: it labels policy pairs for the gate.
        equivalence (*optional*):
            Which outputs mean the same, see `trl_rlp.data.groups`. Needed by SPG and by views of one group.
        eval_preference_dataset (`datasets.Dataset`, *optional*):
            Human preferences for the gate. If `None`, `config.heldout_share` of D is kept from training for it.
        eval_prompt_dataset (`datasets.Dataset`, *optional*):
            Prompts to compare the policies on, with `answers` where they are known. If `None`, the policies are not
            compared.

    Returns:
        [`RLPResult`].

    Raises:
        TypeError, ValueError: if a data set, the equivalence or the output folder does not fit, before any work.
        RewardModelRegression: if the gate refuses (`on_regression="raise"`).

    Reference:
        Lang, Huang, Li 2024, https://arxiv.org/abs/2403.19279, Algorithm 1.
    """
    datasets = preference_dataset, prompt_dataset, eval_preference_dataset, eval_prompt_dataset
    run = _run_folder(config, equivalence, *datasets)
    learn_policy = _policy_arguments(config, prompt_dataset)

    # Step 1: collect D. It is given; a part of it is held out for the gate.
    preferences, heldout = preference_dataset, eval_preference_dataset
    if heldout is None:
        preferences, heldout = hold_out(preference_dataset, config.heldout_share, config.seed)

    # Step 2: train the reward model r on D.
    reward_model = run.stage(
        "reward_model",
        train_reward_model,
        base_model=config.reward_base_model or config.sft_model,
        preference_dataset=preferences,
        args=config.first_reward_args(),
        peft_config=config.lora("reward"),
    )

    # Step 3: train the policy π from π_SFT against r.
    policy = run.stage("policy", train_policy, reward_model=reward_model, **learn_policy)

    # Step 4: sample P from π, and retrain the reward model by Eq. 1: on D and D̂ (SPG), with L_M (UML), or both.
    samples, synthetic, refined_reward_model = refine_reward_model(
        run, _refinement_settings(config), policy, reward_model, prompt_dataset, equivalence, preferences, heldout
    )

    # Step 5: retrain the policy, from π_SFT again, against the refined reward model.
    retrained_policy = run.stage("retrained_policy", train_policy, reward_model=refined_reward_model, **learn_policy)

    if eval_prompt_dataset is not None:
        run.stage(
            "evaluation",
            evaluate_policies,
            policies={"sft": config.sft_model, "policy": policy, "retrained_policy": retrained_policy},
            reward_models={"reward_model": reward_model, "refined_reward_model": refined_reward_model},
            prompt_dataset=eval_prompt_dataset,
            sampling=config.sampling(temperature=config.evaluation_temperature),
            max_length=config.reward_config().max_length,
        )
    return RLPResult(reward_model, policy, samples, synthetic, refined_reward_model, retrained_policy, run.results())


def _refinement_settings(config: RLPConfig) -> RefinementSettings:
    return RefinementSettings(
        base_model=config.reward_base_model or config.sft_model,
        config=config.reward_config(),
        args=config.reward_args,
        sampling=config.sampling(temperature=config.temperature),
        peft_config=config.lora("reward"),
        on_regression=config.on_regression,
        seed=config.seed,
    )


def _policy_arguments(config: RLPConfig, prompt_dataset: Dataset) -> dict[str, Any]:
    """What steps 3 and 5 have in common: everything but the reward model."""
    return {
        "sft_model": config.sft_model,
        "prompt_dataset": prompt_dataset,
        "args": config.policy_args,
        "policy_trainer": config.policy_trainer,
        "peft_config": config.lora("policy"),
        "max_length": config.reward_config().max_length,
        "standardize_with": config.sampling(num_generations=2) if config.standardize_rewards else None,
    }


def _run_folder(config: RLPConfig, equivalence: Any | None, *datasets: Dataset | None) -> RunFolder:
    _check_inputs(config, equivalence, *datasets)
    return RunFolder(config.output_dir, _settings(config, equivalence, *datasets))


def _check_inputs(
    config: RLPConfig,
    equivalence: Any | None,
    preferences: Dataset,
    prompts: Dataset,
    eval_preferences: Dataset | None,
    eval_prompts: Dataset | None,
) -> None:
    require_columns(preferences, ["chosen", "rejected"], "preference_dataset")
    require_prompts(prompts, "prompt_dataset")
    require_answers(prompts, "prompt_dataset")
    if eval_preferences is not None:
        require_columns(eval_preferences, ["chosen", "rejected"], "eval_preference_dataset")
    if eval_prompts is not None:
        require_prompts(eval_prompts, "eval_prompt_dataset")
        require_answers(eval_prompts, "eval_prompt_dataset")
    if config.policy_trainer != "ppo":
        require_no_assistant_prefill(prompts["prompt"], config.policy_trainer)
    if equivalence is None and config.needs_groups():
        raise ValueError(f"`equivalence` is needed by method {config.method!r}. Pass for example `NLIEquivalence()`.")


def _settings(config: RLPConfig, equivalence: Any | None, *datasets: Dataset | None) -> dict[str, Any]:
    """All that decides the results, as plain values, for the run folder to compare."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("output_dir", "on_regression")}
    settings["equivalence"] = equivalence.fingerprint if equivalence is not None else None
    names = ("preference_dataset", "prompt_dataset", "eval_preference_dataset", "eval_prompt_dataset")
    for name, dataset in zip(names, datasets, strict=True):
        settings[name] = None if dataset is None else value_fingerprint(dataset.to_list())
    return settings
