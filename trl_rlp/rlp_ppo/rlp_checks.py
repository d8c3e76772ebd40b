"""Checks of the arguments that the RLP-PPO trainer adds, before any work."""

from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import PreTrainedModel

from trl_rlp.data.groups.equivalence import Equivalence, require_equivalence
from trl_rlp.data.groups.instruction import require_instruction_column
from trl_rlp.data.template_options import require_no_template_columns
from trl_rlp.data.validation import require_answers, require_preferences
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.run_settings import build_refinement_settings, build_reward_config
from trl_rlp.stages.loop_checks import require_refinable, warn_of_long_schedule
from trl_rlp.storage.precision import is_quantized


def require_rlp_arguments(
    args: RLPPPOConfig,
    model: PreTrainedModel | PeftModel,
    reward_model: PreTrainedModel | None,
    train_dataset: Dataset | IterableDataset | None,
    optimizers: tuple[Any, Any],
    preference_dataset: Dataset | None,
    equivalence: Equivalence | None,
) -> None:
    """
    Checks that the method has everything that it needs, and nothing that it would ignore.

    Args:
        args ([`RLPPPOConfig`]):
            Configuration of the run.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            Reward model to refine.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Prompts.
        optimizers (`tuple`):
            The user's optimizer and scheduler. They work for one policy only.
        preference_dataset ([`~datasets.Dataset`], *optional*):
            Human preferences D.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same.

    Raises:
        TypeError, ValueError: If an argument is missing, is not used, or has a type that RLP cannot use.
    """
    if args.rlp_method == "none":
        for name, value in (("preference_dataset", preference_dataset), ("equivalence", equivalence)):
            if value is not None:
                raise ValueError(f'`{name}` is not used with `rlp_method`="none". Set `rlp_method` to "uml" or "spg".')
        return
    if preference_dataset is None:
        raise ValueError(
            f"`preference_dataset` is None, but `rlp_method`={args.rlp_method!r} needs it. Pass human preferences."
        )
    require_preferences(preference_dataset, "preference_dataset")
    if reward_model is None:
        raise ValueError(
            f"`reward_model` is None, but `rlp_method`={args.rlp_method!r} refines it. Pass the model itself. Models "
            "in `reward_funcs` are not refined."
        )
    settings = build_refinement_settings(args, Path(args.output_dir), build_reward_config(args))
    if equivalence is not None:
        require_equivalence(equivalence)
    elif settings.needs_equivalence:
        cause = f"`rlp_method`={args.rlp_method!r} groups completions by meaning"
        if not settings.config.needs_groups:
            cause = f"`rlp_anchor_weight`={args.rlp_anchor_weight} compares completions with anchors"
        raise ValueError(f"`equivalence` is None, but {cause}. Pass for example `NLIEquivalence()`.")
    _require_restart(args, model, train_dataset, optimizers)
    require_instruction_column(train_dataset, equivalence, "train_dataset")
    if args.rlp_refine_every is not None:
        names = {"policy": "", "reward": "rlp_reward_args.", "field": "rlp_refine_every"}
        require_refinable(args, settings.config, **names)
        warn_of_long_schedule(args.rlp_refine_every, args, train_dataset, names["field"])


def _require_restart(
    args: RLPPPOConfig,
    model: PreTrainedModel | PeftModel,
    train_dataset: Dataset | IterableDataset | None,
    optimizers: tuple[Any, Any],
) -> None:
    """Checks that training can start again after the refinement."""
    if args.deepspeed_plugin is not None:
        raise ValueError(
            f"`rlp_method`={args.rlp_method!r} trains several models inside one trainer, but DeepSpeed allows one "
            "engine at a time. Use DDP or FSDP2, or `run_rlp` (`trl-rlp run`), which also works under DeepSpeed."
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "`model` is a `PeftModel`. Its training cannot start again after the refinement. Pass the base model and "
            "`peft_config`."
        )
    if is_quantized(model):
        raise ValueError(
            "`model` is quantized. An adapter that is trained on it cannot be merged into rounded weights, so the "
            "policy of the first training could not be sampled. Load the model in bf16."
        )
    if train_dataset is None:
        raise ValueError("`train_dataset` is None. Pass prompts: a column `prompt` (text or messages) or `input_ids`.")
    if isinstance(train_dataset, IterableDataset):
        raise ValueError(
            "`train_dataset` is a stream. Its prompts cannot be sampled again. Load it without streaming."
        )
    require_answers(train_dataset, "train_dataset")
    require_no_template_columns(train_dataset, "train_dataset")
    if any(optimizers):
        raise ValueError(
            f"`optimizers` belong to one policy, but `rlp_method`={args.rlp_method!r} trains two. Set `optim` and "
            "`learning_rate` instead."
        )
