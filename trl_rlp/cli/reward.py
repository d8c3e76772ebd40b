"""The command `trl-rlp reward`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.cli.model_arguments import require_bitsandbytes
from trl_rlp.stages.reward_model import build_reward_trainer
from trl_rlp.storage.artifacts import load_reward_model, save_trained_model
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.manifest import require_writable
from trl_rlp.storage.precision import dtype_option, require_inference_dtype
from trl_rlp.storage.processes import process_state, run_on_main
from trl_rlp.trainer.checkpoints import resolve_checkpoint
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


@dataclass
class RewardArguments:
    """
    Arguments of `trl-rlp reward`. A dataset is a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`, or a Hub
    name.

    Args:
        preference_dataset (`str`):
            Human preferences D in TRL's preference format.
        preference_split (`str`, *optional*, defaults to `"train"`):
            Split of `preference_dataset`, if it has splits.
        eval_preference_dataset (`str`, *optional*):
            Preferences to evaluate on.
        eval_preference_split (`str`, *optional*, defaults to `"test"`):
            Split of `eval_preference_dataset`, if it has splits.
        policy_samples (`str`, *optional*):
            Policy samples P, as written by `trl-rlp sample`. Required by `uml`, and by `spg` without
            `synthetic_dataset`.
        synthetic_dataset (`str`, *optional*):
            Synthetic preferences D̂, as written by `trl-rlp prefer`.
        labeling_reward_model (`str`, *optional*):
            Folder or Hub name of the frozen reward model r that selects the chosen completions, for `spg` without
            `synthetic_dataset`.
        inference_dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of the labeling reward model and of the equivalence's model: `auto`, `float32` or `bfloat16`. `auto`
            is bf16 on an accelerator that computes in it. `dtype` is that of the trained model.
    """

    preference_dataset: str = field(metadata={"help": "Human preferences D in TRL's preference format."})
    preference_split: str = field(
        default="train", metadata={"help": "Split of `preference_dataset`, if it has splits."}
    )
    eval_preference_dataset: str | None = field(default=None, metadata={"help": "Preferences to evaluate on."})
    eval_preference_split: str = field(
        default="test", metadata={"help": "Split of `eval_preference_dataset`, if it has splits."}
    )
    policy_samples: str | None = field(
        default=None,
        metadata={
            "help": (
                "Policy samples P, as written by `trl-rlp sample`. Required by `uml`, and by `spg` without "
                "`synthetic_dataset`."
            )
        },
    )
    synthetic_dataset: str | None = field(
        default=None, metadata={"help": "Synthetic preferences D̂, as written by `trl-rlp prefer`."}
    )
    labeling_reward_model: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder or Hub name of the frozen reward model r that selects the chosen completions, for `spg` "
                "without `synthetic_dataset`."
            )
        },
    )

    inference_dtype: str = field(
        default="auto",
        metadata={
            "help": (
                "Dtype of the labeling reward model and of the equivalence's model: `auto`, `float32` or `bfloat16`. "
                "`auto` is bf16 on an accelerator that computes in it. `dtype` is that of the trained model."
            )
        },
    )

    def load_refinement(self, equivalence: EquivalenceArguments, config: RLPRewardConfig) -> dict[str, Any]:
        """
        Loads the data and models that the method needs.

        Args:
            equivalence ([`EquivalenceArguments`]):
                Arguments of the equivalence. It is built only if samples have to be grouped.
            config ([`RLPRewardConfig`]):
                Configuration of the run. `method` and `views_from` are used.

        Returns:
            `dict`: Arguments of [`RLPRewardTrainer`].
        """
        arguments: dict[str, Any] = {}
        if self.policy_samples is not None:
            arguments["policy_samples"] = load_rows(self.policy_samples)
        if self.synthetic_dataset is not None:
            arguments["synthetic_dataset"] = load_rows(self.synthetic_dataset)
        if self.labeling_reward_model is not None:
            options = {"trust_remote_code": config.trust_remote_code, **dtype_option(self.inference_dtype)}
            model, processing_class = load_reward_model(self.labeling_reward_model, **options)
            arguments |= {"labeling_reward_model": model, "labeling_processing_class": processing_class}
        makes_pairs = config.uses_synthetic_pairs and self.synthetic_dataset is None
        needs_groups = makes_pairs or (config.uses_views and config.views_share_group)
        if needs_groups and self.policy_samples is not None:
            arguments["equivalence"] = equivalence.build(self.inference_dtype)
        return arguments


def _build_model_init_kwargs(arguments: ModelConfig, config: RLPRewardConfig) -> dict[str, Any]:
    """Collects the options for `from_pretrained`. Those in `model_init_kwargs` take precedence."""
    options = {
        "dtype": arguments.dtype,
        "attn_implementation": arguments.attn_implementation,
        "revision": arguments.model_revision,
        "trust_remote_code": config.trust_remote_code or None,
        "quantization_config": get_quantization_config(arguments),
    }
    if options["quantization_config"] is not None:
        options["device_map"] = {"": process_state().device}
    return {name: value for name, value in options.items() if value is not None} | (config.model_init_kwargs or {})


def _require_no_model(folder: Path) -> None:
    """Checks that no model or checkpoint of another training would be overwritten."""
    patterns = ("checkpoint-*", "config.json", "adapter_config.json")
    existing = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
    if existing:
        raise ValueError(
            f"`output_dir` {folder} already has a model or checkpoints: {', '.join(existing[:3])}. Choose another "
            "`output_dir`, set `resume_from_checkpoint` to true to go on from its last checkpoint, or delete them to "
            "start again."
        )


def main(options: Sequence[str]) -> None:
    """
    Trains a reward model and saves it as a plain sequence classifier, with the state of its trainer.

    A folder that has a model or checkpoints is refused, unless the training resumes from a checkpoint.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp reward`.
    """
    data, config, model_arguments, equivalence = parse(
        "reward",
        "Trains a reward model on human preferences, and optionally on policy samples.",
        options,
        RewardArguments,
        RLPRewardConfig,
        ModelConfig,
        EquivalenceArguments,
    )
    if model_arguments.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is not set. Pass the folder or Hub name of the model to start from.")
    require_inference_dtype("inference_dtype", data.inference_dtype)
    require_bitsandbytes(model_arguments)
    require_writable(Path(config.output_dir))
    checkpoint = resolve_checkpoint(config.resume_from_checkpoint, config.output_dir)
    if checkpoint is None:
        run_on_main(lambda: _require_no_model(Path(config.output_dir)))
    config.model_init_kwargs = _build_model_init_kwargs(model_arguments, config)
    peft_config = get_peft_config(model_arguments)
    if peft_config is not None:
        peft_config.task_type = "SEQ_CLS"  # TRL's default is the task type of policies
    eval_path = data.eval_preference_dataset
    trainer = build_reward_trainer(
        model_arguments.model_name_or_path,
        config,
        load_rows(data.preference_dataset, data.preference_split),
        eval_dataset=load_rows(eval_path, data.eval_preference_split) if eval_path else None,
        peft_config=peft_config,
        **data.load_refinement(equivalence, config),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate() if eval_path else None
    save_trained_model(trainer, config.output_dir)
    trainer.save_state()  # with the time and the last evaluation, which are in no checkpoint
    trainer.create_model_card(model_name=Path(config.output_dir).name)
    if process_state().is_main_process:
        if eval_path:
            print(metrics)
        print(f"reward model: {config.output_dir}")
