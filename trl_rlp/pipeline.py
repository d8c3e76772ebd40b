"""Algorithm 1 of RLP, from human preferences to a policy that is retrained against a refined reward model."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, concatenate_datasets

from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.groups.instruction import list_instruction_columns
from trl_rlp.data.preferences.holdout import hold_out
from trl_rlp.data.sampling.ready_samples import SampleSource, describe_source, find_answers, load_source
from trl_rlp.data.validation import remove_format, require_prompts
from trl_rlp.evaluation.gate_report import RewardModelRegression
from trl_rlp.pipeline_checks import require_run_arguments
from trl_rlp.pipeline_config import RefinementSettings, RLPConfig
from trl_rlp.rewards.standardization import select_fixed_rows
from trl_rlp.stages.anchors import make_anchors
from trl_rlp.stages.evaluation import evaluate_policies
from trl_rlp.stages.gate import compare_reward_models
from trl_rlp.stages.in_loop import InLoop, find_last_reward_model
from trl_rlp.stages.policy import train_policy
from trl_rlp.stages.preferences import make_synthetic_preferences
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.stages.run_cards import describe_evaluation, describe_gate, describe_synthesis
from trl_rlp.stages.samples import group_samples, sample_policy
from trl_rlp.storage.artifacts import load_data
from trl_rlp.storage.fingerprints import dataset_fingerprint, describe_local_models
from trl_rlp.storage.run_folder import RunFolder, round_name
from trl_rlp.trainer.model_card import METHOD_TAG


_NO_SETTINGS = ("engine", "engine_args", "on_regression", "output_dir", "tokens_per_batch")
"""Fields of RLPConfig that a resumed run may change. The shards of a stage keep the engine that sampled them."""


class Round(NamedTuple):
    """
    Folders of one round of steps 4 and 5.

    Args:
        policy_samples (`Path`):
            Policy samples P, see [`RLPResult`].
        synthetic_preferences (`Path` or `None`):
            Synthetic preferences D̂ of this round. `None` without SPG.
        refined_reward_model (`Path`):
            Refined reward model r̂_φ, a plain sequence classifier.
        retrained_policy (`Path`):
            Retrained policy π̂_θ, a plain causal LM.
    """

    policy_samples: Path
    synthetic_preferences: Path | None
    refined_reward_model: Path
    retrained_policy: Path


@dataclass
class RLPResult:
    """
    Models, datasets and metrics of a run. With several rounds, those of steps 4 and 5 are of the last one.

    Args:
        reward_model (`Path`):
            Reward model r_φ, a plain sequence classifier.
        policy (`Path` or `None`):
            Policy π_θ, a plain causal LM. `None` with `sample_from="sft"`, which does not train it.
        policy_samples (`Path`):
            Policy samples P, a dataset with `prompt`, `completions` and `finished`. If the samples were grouped, it
            also has `cluster_ids` and `confidence`. Read it with [`load_data`].
        synthetic_preferences (`Path` or `None`):
            Synthetic preferences D̂, a dataset. `None` without SPG.
        refined_reward_model (`Path`):
            Refined reward model r̂_φ, a plain sequence classifier.
        retrained_policy (`Path`):
            Retrained policy π̂_θ, a plain causal LM.
        stages (`dict`):
            `metrics`, `seconds` and `peak_memory_gib` of each stage, by name.
        rounds (`list[Round]`):
            Folders of each round of steps 4 and 5.
    """

    reward_model: Path
    policy: Path | None
    policy_samples: Path
    synthetic_preferences: Path | None
    refined_reward_model: Path
    retrained_policy: Path
    stages: dict[str, dict[str, Any]]
    rounds: list[Round]


def run_rlp(
    config: RLPConfig,
    preference_dataset: Dataset,
    prompt_dataset: Dataset,
    equivalence: Equivalence | None = None,
    eval_preference_dataset: Dataset | None = None,
    eval_prompt_dataset: Dataset | None = None,
    policy_samples: Dataset | str | Path | Callable[[Dataset], Dataset] | None = None,
) -> RLPResult:
    """
    Runs Algorithm 1: trains r, trains π, samples π, refines r and retrains π from π_SFT. Then evaluates the policies.

    Each stage writes its result to a folder under `config.output_dir`, completely or not at all. A second call with
    the same settings, models and data skips the stages that are finished.

    Args:
        config ([`RLPConfig`]):
            Settings.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D in TRL's preference format (`prompt`, `chosen`, `rejected`).
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U with a column `prompt`, without labels. A column `answers` (accepted answer or answers) labels
            policy pairs for the gate. Nothing is trained on it.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same. Required by SPG, by views of one group and by the anchor reward.
        eval_preference_dataset ([`~datasets.Dataset`], *optional*):
            Human preferences for the gate. If `None`, `config.heldout_share` of D is held out.
        eval_prompt_dataset ([`~datasets.Dataset`], *optional*):
            Prompts to evaluate the policies on, with a column `answers` if the answers are known. If `None`, the
            policies are not evaluated.
        policy_samples ([`~datasets.Dataset`] or `str` or `Path` or `Callable`, *optional*):
            Policy samples P instead of sampling: a dataset with `prompt`, `completions` and `finished`, its file or
            folder, or a function from the prompts U to such a dataset. The function can load the policy of step 3 from
            `output_dir/policy`. Every process calls it. A prompt may be missing, but not be another one. A resumed run
            recognizes a function by its attribute `fingerprint`, or else by its name. They are those of round 1.
            Further rounds sample with `config.engine`. With `sample_from="sft"`, they are samples of π_SFT.

    Returns:
        [`RLPResult`]: Folders and metrics.

    Raises:
        TypeError, ValueError: If a dataset, the equivalence or the output folder does not fit, before any work.
        RewardModelRegression: If the gate refuses the refined reward model (`on_regression="raise"`).

    Reference:
        Algorithm 1 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279).
    """
    preference_dataset, prompt_dataset = remove_format(preference_dataset), remove_format(prompt_dataset)
    eval_preference_dataset = remove_format(eval_preference_dataset)
    eval_prompt_dataset = remove_format(eval_prompt_dataset)
    policy_samples = load_source(policy_samples, require_prompts(prompt_dataset, "prompt_dataset"))
    run = _open_run_folder(
        config,
        equivalence,
        preference_dataset,
        prompt_dataset,
        eval_preference_dataset,
        eval_prompt_dataset,
        policy_samples,
    )

    # Step 1: collect D. The user passes it. A part of it is held out for the gate.
    preferences, heldout = preference_dataset, eval_preference_dataset
    if heldout is None:
        preferences, heldout = hold_out(preference_dataset, config.heldout_share, config.seed)

    # Not part of Algorithm 1, and off by default: anchors for step 5, the clear majorities among samples of π_SFT.
    settings = config.refinement_settings()
    anchors = sample_anchors(run, settings, config.sft_model, prompt_dataset, equivalence, policy_samples)

    # Step 2: train the reward model r on D.
    reward_model = run.stage(
        "reward_model",
        train_reward_model,
        base_model=config.reward_base_model or config.sft_model,
        preference_dataset=preferences,
        args=config.first_reward_args(),
        peft_config=config.lora("reward"),
    )

    # Step 3: train the policy π from π_SFT against r. With `sample_from="sft"`, which is ours, nothing needs π.
    policy = None
    if settings.trains_first_policy:
        arguments = config.policy_arguments()
        policy = run.stage(
            "policy", train_policy, reward_model=reward_model, prompt_dataset=prompt_dataset, **arguments
        )

    # Steps 4 and 5, once in Algorithm 1. Each further round uses the policy and the reward model of the round before.
    rounds: list[Round] = []
    last_policy, last_reward_model, all_preferences = policy or config.sft_model, reward_model, ()
    for number in range(1, config.rounds + 1):
        # Step 4: sample P from the last policy, and retrain the reward model on it.
        round_run = run.in_round(number)
        refinement = refine_reward_model(
            round_run,
            settings,
            policy=last_policy,
            reward_model=last_reward_model,
            prompt_dataset=prompt_dataset,
            equivalence=equivalence,
            preference_dataset=preferences,
            heldout_preferences=heldout,
            policy_samples=policy_samples if number == 1 else None,
            earlier_preferences=all_preferences,
        )
        all_preferences = refinement.all_preferences

        # Step 5: retrain the policy, again from π_SFT, against the refined reward model.
        last_policy = round_run.stage(
            "retrained_policy",
            train_policy,
            reward_model=refinement.reward_model,
            prompt_dataset=prompt_dataset,
            in_loop=build_in_loop(settings, anchors, all_preferences, equivalence, preferences, heldout),
            tags=[METHOD_TAG],
            **config.policy_arguments(),
        )
        last_reward_model = find_last_reward_model(last_policy, refinement.reward_model)
        rounds.append(
            Round(refinement.samples, refinement.synthetic_preferences, refinement.reward_model, last_policy)
        )

    # Not part of Algorithm 1: compare the policies on held-out prompts.
    if eval_prompt_dataset is not None:
        _run_evaluation(run, config, reward_model, policy, rounds, eval_prompt_dataset)
    return RLPResult(reward_model, policy, **rounds[-1]._asdict(), stages=run.results(), rounds=rounds)


class Anchors(NamedTuple):
    """Folders of the samples of π_SFT and of the anchors (`None` if step 5 does not compare completions with them)."""

    samples: Path
    anchors: Path | None


class Refinement(NamedTuple):
    """
    Folders of the samples P, the preferences D̂ (`None` without SPG), and the refined reward model r̂_φ.

    `all_preferences` are those of this round and of the earlier ones.
    """

    samples: Path
    synthetic_preferences: Path | None
    reward_model: Path
    all_preferences: tuple[Path, ...] = ()


def sample_anchors(
    run: RunFolder,
    settings: RefinementSettings,
    policy: str | Path,
    prompt_dataset: Dataset,
    equivalence: Equivalence | None,
    policy_samples: SampleSource | None = None,
) -> Anchors | None:
    """
    Samples π_SFT once, groups the samples and makes anchors from them. This is ours and not the paper's.

    With `sample_from="sft"`, these are the stages `policy_samples` and `groups` of round 1.

    Args:
        run ([`RunFolder`]):
            Folder of the stages.
        settings ([`RefinementSettings`]):
            Settings of the refinement. They decide whether there are samples and anchors.
        policy (`str` or `Path`):
            Folder or Hub name of π_SFT.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U. Without anchors, the first 256 are sampled, or all with `sample_from="sft"`.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same. Required by anchors.
        policy_samples ([`~datasets.Dataset`] or `Callable`, *optional*):
            Samples P instead of sampling. Used with `sample_from="sft"` only.

    Returns:
        [`Anchors`] or `None`: Folders of the results. `None` if step 5 has neither anchors nor refinement.

    Raises:
        ValueError: If no prompt has an anchor.
    """
    if not settings.is_in_loop:
        return None
    groups = None
    if not settings.trains_first_policy:
        samples = _sample(run, "policy_samples", settings, policy, prompt_dataset, equivalence, policy_samples)
        groups = _group(run, settings, samples, equivalence)
    else:
        if not settings.needs_anchors:  # then the samples decide the scale of refined reward models only
            prompt_dataset = select_fixed_rows(prompt_dataset)
        samples = _sample(run, "anchor_samples", settings, policy, prompt_dataset, equivalence)
    if not settings.needs_anchors:
        return Anchors(samples, None)
    anchors = run.stage(
        "anchors",
        make_anchors,
        samples=samples,
        equivalence=equivalence,
        threshold=settings.config.confidence_threshold,
        groups=groups,
    )
    return Anchors(samples, anchors)


def build_in_loop(
    settings: RefinementSettings,
    anchors: Anchors | None,
    synthetic: Sequence[Path],
    equivalence: Equivalence | None,
    preference_dataset: Dataset,
    heldout_preferences: Dataset,
) -> InLoop | None:
    """
    Collects what step 5 adds to the policy's training. This is ours and not the paper's.

    Args:
        settings ([`RefinementSettings`]):
            Settings of the refinement.
        anchors ([`Anchors`], *optional*):
            Result of [`sample_anchors`].
        synthetic (`Sequence[Path]`):
            Folders of the synthetic preferences of all rounds so far.
        equivalence ([`Equivalence`], *optional*):
            Decides whether a completion means what the anchor means.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D, without the held-out part.
        heldout_preferences ([`~datasets.Dataset`]):
            Human preferences that decide whether a refined reward model is kept.

    Returns:
        [`InLoop`] or `None`: The additions. `None` if there are none.
    """
    if anchors is None:
        return None
    return InLoop(
        anchor_weight=settings.anchor_weight,
        refine_every=settings.refine_every,
        anchors=anchors.anchors,
        samples=anchors.samples,
        equivalence=equivalence,
        base_model=settings.base_model,
        config=settings.config,
        preference_dataset=preference_dataset,
        heldout_preferences=heldout_preferences,
        synthetic=synthetic,
        peft_config=settings.peft_config,
        seed=settings.seed,
    )


def refine_reward_model(
    run: RunFolder,
    settings: RefinementSettings,
    *,
    policy: str | Path,
    reward_model: Path,
    prompt_dataset: Dataset,
    equivalence: Equivalence | None,
    preference_dataset: Dataset,
    heldout_preferences: Dataset,
    policy_samples: SampleSource | None = None,
    earlier_preferences: Sequence[Path] = (),
) -> Refinement:
    r"""
    Runs step 4 of Algorithm 1: samples P from π, makes D̂ (SPG), and retrains the reward model by Eq. 1.

    $$L_{\hat R} = -E_{D \cup \hat D} \log\sigma(\hat r(x, y_w) - \hat r(x, y_l)) + \lambda L_M$$

    RLP-UML does not use D̂, and RLP-SPG does not use L_M. The gate then compares both reward models.

    Args:
        run ([`RunFolder`]):
            Folder of the stages.
        settings ([`RefinementSettings`]):
            Settings of the refinement.
        policy (`str` or `Path`):
            Folder of the policy π_θ, or folder or Hub name of π_SFT with `sample_from="sft"`.
        reward_model (`Path`):
            Folder of the reward model r_φ. It chooses y_w, and the gate compares with it.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U. A column `answers` labels policy pairs for the gate.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same. Required by SPG and by views of one group.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D, without the held-out part.
        heldout_preferences ([`~datasets.Dataset`]):
            Human preferences for the gate.
        policy_samples ([`~datasets.Dataset`] or `Callable`, *optional*):
            Samples P, or a function from prompts to samples, instead of sampling.
        earlier_preferences (`Sequence[Path]`, *optional*):
            Folders of D̂ of earlier rounds. The reward model is trained on them too.

    Returns:
        [`Refinement`]: Folders of the results.

    Raises:
        RewardModelRegression: If the gate refuses the refined reward model (`on_regression="raise"`).

    Reference:
        Step 4 of Algorithm 1, and Eq. 1, of [Lang et al. 2024](https://arxiv.org/abs/2403.19279).
    """
    # Sample: n completions of the policy for each prompt.
    samples = _sample(run, "policy_samples", settings, policy, prompt_dataset, equivalence, policy_samples)

    # Group: completions of a prompt that mean the same.
    samples = _group(run, settings, samples, equivalence) or samples

    # Prefer (SPG): y_w from the largest group, y_l from the others.
    synthetic = None
    if settings.config.uses_synthetic_pairs:
        synthetic = run.stage(
            "synthetic_preferences",
            make_synthetic_preferences,
            groups=samples,
            reward_model=reward_model,
            config=settings.config,
            seed=settings.seed,
            model_options=settings.model_options,
        )

    # Retrain: a new reward model, from the same start as the first one, on D and D̂ (SPG), with L_M (UML), or both.
    all_preferences = (*earlier_preferences, *([synthetic] if synthetic else []))
    refined_reward_model = run.stage(
        "refined_reward_model",
        train_reward_model,
        base_model=settings.base_model,
        preference_dataset=preference_dataset,
        args={**settings.args, "method": settings.config.method},
        peft_config=settings.peft_config,
        policy_samples=load_data(samples) if settings.config.uses_views else None,
        synthetic_dataset=concatenate_datasets([*map(load_data, all_preferences)]) if synthetic else None,
    )

    if synthetic:
        describe_synthesis(
            refined_reward_model, settings.config, samples, equivalence, run.metrics("synthetic_preferences")
        )

    # Gate, not part of Algorithm 1: is the refined reward model worse than the one that it replaces?
    _run_gate(
        run,
        settings,
        before=reward_model,
        after=refined_reward_model,
        human_pairs=heldout_preferences,
        samples=samples,
        answers=find_answers(load_data(samples), prompt_dataset),
        synthetic=synthetic,
    )
    return Refinement(samples, synthetic, refined_reward_model, all_preferences)


def _sample(
    run: RunFolder,
    name: str,
    settings: RefinementSettings,
    policy: str | Path,
    prompt_dataset: Dataset,
    equivalence: Equivalence | None,
    policy_samples: SampleSource | None = None,
) -> Path:
    return run.stage(
        name,
        sample_policy,
        policy=policy,
        prompt_dataset=prompt_dataset,
        sampling=settings.sampling,
        columns=list_instruction_columns(equivalence),
        model_options=settings.model_options,
        policy_samples=policy_samples,
    )


def _group(
    run: RunFolder, settings: RefinementSettings, samples: Path, equivalence: Equivalence | None
) -> Path | None:
    """Groups samples if the method needs groups."""
    if not settings.config.needs_groups:
        return None
    return run.stage(
        "groups",
        group_samples,
        samples=samples,
        equivalence=equivalence,
        threshold=settings.config.confidence_threshold,
        complete_groups=settings.config.views_share_group,
    )


def _run_gate(run: RunFolder, settings: RefinementSettings, **compared: Any) -> None:
    """Raises outside the stage, to keep the metrics of the stage. A later call may set another `on_regression`."""
    compared |= {"max_length": settings.config.max_length, "model_options": settings.model_options}
    run.stage("gate", compare_reward_models, seed=settings.seed, **compared)
    report = run.metrics("gate")
    describe_gate(compared["after"], report)
    if settings.on_regression == "raise" and not report["passed"]:
        raise RewardModelRegression(f"The gate refused {compared['after']}: {'; '.join(report['problems'])}")


def _run_evaluation(
    run: RunFolder,
    config: RLPConfig,
    reward_model: Path,
    policy: Path | None,
    rounds: Sequence[Round],
    prompt_dataset: Dataset,
) -> None:
    """Evaluates π_SFT and the policies of all rounds, also with the reward model of each round."""
    policies: dict[str, str | Path] = {"sft": config.sft_model}
    if policy is not None:
        policies["policy"] = policy
    reward_models = {"reward_model": reward_model}
    for number, entry in enumerate(rounds, start=1):
        policies[round_name("retrained_policy", number)] = entry.retrained_policy
        reward_models[round_name("refined_reward_model", number)] = entry.refined_reward_model
    run.stage(
        "evaluation",
        evaluate_policies,
        policies=policies,
        reward_models=reward_models,
        prompt_dataset=prompt_dataset,
        sampling=config.engine_sampling(config.evaluation_temperature),
        max_length=config.reward_config().max_length,
        model_options=config.model_options(),
    )
    describe_evaluation(policies, run.metrics("evaluation"))


def _open_run_folder(
    config: RLPConfig,
    equivalence: Equivalence | None,
    preference_dataset: Dataset,
    prompt_dataset: Dataset,
    eval_preference_dataset: Dataset | None,
    eval_prompt_dataset: Dataset | None,
    policy_samples: SampleSource | None,
) -> RunFolder:
    """Checks the arguments, and claims the folder. Its settings are everything that decides the results."""
    require_run_arguments(
        config, equivalence, preference_dataset, prompt_dataset, eval_preference_dataset, eval_prompt_dataset
    )
    settings = {key: value for key, value in asdict(config).items() if key not in _NO_SETTINGS}
    # The attention implementation changes results by rounding only.
    settings["model_args"] = {k: v for k, v in settings["model_args"].items() if k != "attn_implementation"}
    settings |= describe_local_models(sft_model=config.sft_model, reward_base_model=config.reward_base_model)
    settings["policy_samples"] = describe_source(policy_samples)
    settings["equivalence"] = None if equivalence is None else equivalence.fingerprint
    datasets = {
        "preference_dataset": preference_dataset,
        "prompt_dataset": prompt_dataset,
        "eval_preference_dataset": eval_preference_dataset,
        "eval_prompt_dataset": eval_prompt_dataset,
    }
    for name, dataset in datasets.items():
        settings[name] = None if dataset is None else dataset_fingerprint(dataset)
    return RunFolder(config.output_dir, settings)
