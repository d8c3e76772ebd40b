"""Checks of the arguments of Algorithm 1, before any work."""

from datasets import Dataset

from trl_rlp.data.groups.equivalence import Equivalence, require_equivalence
from trl_rlp.data.groups.instruction import read_instructions
from trl_rlp.data.special_tokens import require_plain_prompts
from trl_rlp.data.template_options import require_no_template_columns
from trl_rlp.data.turns import require_no_assistant_prefill
from trl_rlp.data.validation import require_answers, require_preferences, require_prompts
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.stages.loop_checks import warn_of_long_schedule
from trl_rlp.storage.artifacts import HUB_OPTIONS, load_tokenizer, require_causal_lm
from trl_rlp.trainer.ppo.ppo_checks import require_value_adapter
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.rollout_steps import require_rollout


def require_run_arguments(
    config: RLPConfig,
    equivalence: Equivalence | None,
    preference_dataset: Dataset,
    prompt_dataset: Dataset,
    eval_preference_dataset: Dataset | None,
    eval_prompt_dataset: Dataset | None,
) -> None:
    """
    Checks that models and datasets exist and fit together. It warns if step 5 is too short for a refinement.

    Args:
        config ([`RLPConfig`]):
            Settings of the run.
        equivalence, preference_dataset, prompt_dataset, eval_preference_dataset, eval_prompt_dataset:
            As in [`run_rlp`].

    Raises:
        OSError: If there is no model with the name of `config.sft_model`.
        TypeError, ValueError: If something does not fit.
    """
    hub_options = {name: value for name, value in config.model_options().items() if name in HUB_OPTIONS}
    require_causal_lm(config.sft_model, **hub_options)
    require_preferences(preference_dataset, "preference_dataset")
    require_prompts(prompt_dataset, "prompt_dataset")
    require_answers(prompt_dataset, "prompt_dataset")
    require_no_template_columns(prompt_dataset, "prompt_dataset")
    if eval_preference_dataset is not None:
        require_preferences(eval_preference_dataset, "eval_preference_dataset")
    if eval_prompt_dataset is not None:
        require_prompts(eval_prompt_dataset, "eval_prompt_dataset")
        require_answers(eval_prompt_dataset, "eval_prompt_dataset")
    policy_config = config.policy_config()
    if isinstance(policy_config, PPOConfig):
        require_rollout(policy_config, len(prompt_dataset), "prompt_dataset")
        require_value_adapter(policy_config, None, config.lora("policy"))
    else:
        require_no_assistant_prefill(prompt_dataset["prompt"], config.policy_trainer)
        processing_class = load_tokenizer(config.sft_model, **hub_options)
        require_plain_prompts(prompt_dataset["prompt"], processing_class, config.policy_trainer)
    _require_equivalence_if_needed(config, equivalence, prompt_dataset)
    if config.refine_every is not None:
        warn_of_long_schedule(config.refine_every, policy_config, prompt_dataset)


def _require_equivalence_if_needed(
    config: RLPConfig, equivalence: Equivalence | None, prompt_dataset: Dataset
) -> None:
    settings = config.refinement_settings()
    if equivalence is not None:
        require_equivalence(equivalence)
        read_instructions(prompt_dataset, equivalence, "prompt_dataset")
    elif settings.needs_equivalence:
        cause = f"`method`={config.method!r} groups completions by meaning"
        if not settings.config.needs_groups:
            cause = f"`anchor_weight`={config.anchor_weight} compares completions with anchors"
        raise ValueError(f"`equivalence` is None, but {cause}. Pass for example `NLIEquivalence()`.")
