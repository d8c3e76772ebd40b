"""Algorithm 1 around a PPO trainer: the policy is trained, the reward model refined, and training begins anew."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.preferences.holdout import hold_out
from trl_rlp.data.token_prompts import decode_prompts
from trl_rlp.data.validation import require_columns
from trl_rlp.stages.refinement_stage import Refinement, RefinementSettings, refine_reward_model
from trl_rlp.storage.artifacts import save_model
from trl_rlp.storage.fingerprints import tokenizer_fingerprint, value_fingerprint, weights_fingerprint
from trl_rlp.storage.run_folder import RunFolder
from trl_rlp.trainer.ppo.ppo_fields import DERIVED_SIZES
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


FOLDER = "rlp"
DECIDING = (
    "ref_model",
    "reward_model",
    "value_model",
    "reward_funcs",
    "reward_processing_class",
    "peft_config",
    "value_peft_config",
)
"""Arguments of the trainer that decide what the first policy becomes, beside those that a run always has."""

INITIAL_POLICY = "initial_policy"

INHERITED = ("seed", "use_cpu", "bf16", "gradient_checkpointing", "report_to", "disable_tqdm")
"""What the refined reward model's trainer has from the policy's unless `rlp_reward_args` says otherwise."""


@dataclass(frozen=True)
class RLPInputs:
    """
    What a PPO trainer needs for RLP besides its own arguments.

    Args:
        preference_dataset (`datasets.Dataset`, *optional*):
            D: the human preferences that the reward model was trained on, in TRL's format.
        equivalence (*optional*):
            Which outputs mean the same, see `trl_rlp.data.groups`.
    """

    preference_dataset: Dataset | None
    equivalence: Any | None

    def require_fit(
        self,
        args: RLPPPOConfig,
        model: PreTrainedModel | PeftModel,
        reward_model: PreTrainedModel | None,
        train_dataset: Dataset | IterableDataset,
        optimizers: tuple[Any, Any],
    ) -> None:
        """
        Checks that the method has what it needs and nothing that it would ignore.

        Args:
            args ([`RLPPPOConfig`]):
                Settings of the run.
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The policy.
            reward_model ([`~transformers.PreTrainedModel`], *optional*):
                The one to refine.
            train_dataset (`Dataset` or `IterableDataset`):
                Prompts.
            optimizers (`tuple`):
                The user's, which serve one policy only.

        Raises:
            TypeError, ValueError: if something is missing, useless, or of a kind that cannot be refined with.
        """
        if args.rlp_method == "none":
            for name, value in vars(self).items():
                if value is not None:
                    raise ValueError(f'`{name}` has no use with `rlp_method`="none". Set it to "uml" or "spg".')
            return
        if self.preference_dataset is None:
            raise ValueError(f"`preference_dataset` is None, but `rlp_method`={args.rlp_method!r} needs it. Pass D.")
        require_columns(self.preference_dataset, ["chosen", "rejected"], "preference_dataset")
        if reward_model is None:
            raise ValueError(
                f"`reward_model` is None, but `rlp_method`={args.rlp_method!r} refines it. Pass the model itself; "
                "`reward_funcs` are left as they are."
            )
        if isinstance(model, PeftModel):
            raise ValueError(
                "`model` is a `PeftModel`, which cannot begin anew after the refinement. Pass the base model and "
                "`peft_config`."
            )
        if isinstance(train_dataset, IterableDataset):
            raise ValueError("`train_dataset` is a stream, whose prompts cannot be sampled again. Load it whole.")
        if any(optimizers):
            raise ValueError(
                f"`optimizers` belong to one policy, and `rlp_method`={args.rlp_method!r} trains two. Set `optim` and "
                "`learning_rate` instead."
            )
        if refinement_config(args).needs_groups and self.equivalence is None:
            raise ValueError(
                f"`equivalence` is None, but `rlp_method`={args.rlp_method!r} groups outputs by meaning. Pass for "
                "example `NLIEquivalence()`."
            )


def refinement_args(args: RLPPPOConfig) -> dict[str, Any]:
    """
    Gives the fields of the refined reward model's trainer: the user's, and for the rest [`INHERITED`] ones.

    Args:
        args ([`RLPPPOConfig`]):
            Settings of the run.

    Returns:
        `dict`: fields of [`RLPRewardConfig`] but `output_dir` and `method`.

    Raises:
        ValueError: if the user's differ in what a process has one of, its device and its precision.
    """
    for name in ("use_cpu", "bf16", "fp16"):
        if args.rlp_reward_args.get(name, vars(args)[name]) != vars(args)[name]:
            raise ValueError(
                f"`rlp_reward_args` sets `{name}`={args.rlp_reward_args[name]}, but the policy's trainer, in the same "
                f"process, has {vars(args)[name]}. Set it there alone."
            )
    return {**{name: vars(args)[name] for name in INHERITED}, **args.rlp_reward_args}


def refinement_config(args: RLPPPOConfig) -> RLPRewardConfig:
    """
    Gives the settings of the refined reward model's trainer.

    Args:
        args ([`RLPPPOConfig`]):
            Settings of the run.

    Returns:
        [`RLPRewardConfig`].
    """
    return RLPRewardConfig(output_dir=args.output_dir, method=args.rlp_method, **refinement_args(args))


def argument_fingerprint(value: Any) -> Any:
    """
    Gives what tells an argument of a trainer from another in a file.

    Args:
        value (`Any`):
            A model, a tokenizer, a PEFT config, a function (known by its name only), text, `None`, or a list of them.

    Returns:
        `str`, or a list of them, or `None`.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return [argument_fingerprint(entry) for entry in value]
    if isinstance(value, nn.Module):
        return weights_fingerprint(value)
    if isinstance(value, PreTrainedTokenizerBase):
        return tokenizer_fingerprint(value)
    if isinstance(value, PeftConfig):
        return value_fingerprint(json.loads(json.dumps(value.to_dict(), default=_plain)))
    return getattr(value, "__qualname__", type(value).__qualname__)


def _plain(value: Any) -> Any:
    """A set has no order of its own: another process would write it down in another one."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


class RLPRun:
    """
    The steps of Algorithm 1 before the last one, as stages under `output_dir`/rlp; finished ones are not done again.

    Args:
        args ([`RLPPPOConfig`]):
            Settings of the run.
        inputs ([`RLPInputs`]):
            Preferences and equivalence, checked.
        policy ([`~transformers.PreTrainedModel`]):
            As it starts. It is written to disk at once.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`datasets.Dataset`):
            `prompt`, or `input_ids`, of which the text is taken.
        arguments (`dict[str, Any]`):
            Of the trainer; those of [`DECIDING`] tell one run from another.
    """

    def __init__(
        self,
        args: RLPPPOConfig,
        inputs: RLPInputs,
        policy: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        prompts: Dataset,
        arguments: dict[str, Any],
    ):
        self.args, self.inputs = args, inputs
        # A configuration resets accelerate's state, so it must be made before the trainer's accelerator.
        self._reward_config = refinement_config(args)
        self.prompts = decode_prompts(prompts, processing_class)
        self.folder = RunFolder(Path(args.output_dir) / FOLDER, self._settings(policy, processing_class, arguments))
        self.initial_policy = self.folder.stage(
            INITIAL_POLICY, save_model, model=policy, processing_class=processing_class
        )

    def _settings(
        self, policy: PreTrainedModel, processing_class: PreTrainedTokenizerBase, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """What decides the results; where they go, what is logged and what a trainer works out does not."""
        left_out = ("output_dir", "run_name", "report_to", "project", "hub_", "push_", "log_", "logging_", "save_")
        left_out += ("resume_", "restore_", "do_", "eval_", "disable_tqdm", "dataloader_", "ddp_", "sft_model_path")
        left_out += ("num_sample_", "num_completions_to_", "reward_model_path", "dataset_num_proc")
        values = json.loads(json.dumps(self.args.to_dict(), default=str))
        equivalence = self.inputs.equivalence
        return {
            **{f"args.{k}": v for k, v in values.items() if not k.startswith(left_out) and k not in DERIVED_SIZES},
            "policy": weights_fingerprint(policy),
            "tokenizer": tokenizer_fingerprint(processing_class),
            "prompts": value_fingerprint(self.prompts.to_list()),
            "preference_dataset": value_fingerprint(self.inputs.preference_dataset.to_list()),
            "equivalence": None if equivalence is None else equivalence.fingerprint,
            **{name: argument_fingerprint(arguments[name]) for name in DECIDING},
        }

    def refine(
        self,
        train_first: Callable[[Path], dict[str, float]],
        reward_model: PreTrainedModel,
        reward_processing_class: PreTrainedTokenizerBase,
    ) -> Refinement:
        """
        Trains the first policy, samples it, and refines the reward model: steps 3 and 4.

        Args:
            train_first (`Callable[[Path], dict[str, float]]`):
                Trains a policy from the initial one and writes it, plain, to a folder.
            reward_model ([`~transformers.PreTrainedModel`]):
                r_φ.
            reward_processing_class (`PreTrainedTokenizerBase`):
                Its tokenizer.

        Returns:
            [`Refinement`].
        """
        policy = self.folder.stage("policy", train_first)
        saved = self.folder.stage(
            "reward_model", save_model, model=reward_model, processing_class=reward_processing_class
        )
        seed = self.args.seed
        settings = RefinementSettings(
            base_model=self.args.rlp_reward_base or self.initial_policy,
            config=self._reward_config,
            args=refinement_args(self.args),
            sampling={
                "num_generations": self.args.rlp_num_generations,
                "temperature": self.args.rlp_temperature,
                "max_new_tokens": self.args.max_completion_length,
                "seed": seed,
            },
            seed=seed,
        )
        preferences, heldout = hold_out(self.inputs.preference_dataset, self.args.rlp_heldout_share, seed)
        return refine_reward_model(
            self.folder, settings, policy, saved, self.prompts, self.inputs.equivalence, preferences, heldout
        )
