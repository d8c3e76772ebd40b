"""`trl-rlp reward`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.storage.artifacts import load_reward_model, save_plain
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.processes import process_state
from trl_rlp.trainer.reward.initial_model import init_reward_model
from trl_rlp.trainer.reward.methods import METHODS
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


@dataclass
class RewardArguments:
    """
    Data of `trl-rlp reward`; each is a JSON-lines file, a folder of `save_to_disk`, or a Hub name.

    Args:
        preference_dataset (`str`):
            D: human preferences in TRL's format.
        preference_split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub data set.
        eval_preference_dataset (`str`, *optional*):
            Preferences to evaluate on.
        eval_preference_split (`str`, *optional*, defaults to `"test"`):
            Its split, if it is a Hub data set.
        policy_samples (`str`, *optional*):
            P, as `trl-rlp sample` writes it. Needed by `uml`, and by `spg` without `synthetic_dataset`.
        synthetic_dataset (`str`, *optional*):
            D̂, as `trl-rlp prefer` writes it.
        labeling_reward_model (`str`, *optional*):
            Folder or Hub name of the frozen r that picks the chosen sides, for `spg` without `synthetic_dataset`.
    """

    preference_dataset: str = field(metadata={"help": "D: human preferences in TRL's format."})
    preference_split: str = field(default="train", metadata={"help": "Split of a Hub preference data set."})
    eval_preference_dataset: str | None = field(default=None, metadata={"help": "Preferences to evaluate on."})
    eval_preference_split: str = field(
        default="test", metadata={"help": "Split of a Hub data set of preferences to evaluate on."}
    )
    policy_samples: str | None = field(default=None, metadata={"help": "P, as `trl-rlp sample` writes it."})
    synthetic_dataset: str | None = field(
        default=None, metadata={"help": "Synthetic preferences, as `trl-rlp prefer` writes them."}
    )
    labeling_reward_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the frozen r that picks the chosen sides."}
    )

    def refinement(self, equivalence: EquivalenceArguments, config: RLPRewardConfig) -> dict[str, Any]:
        """
        Loads what the method needs.

        Args:
            equivalence ([`EquivalenceArguments`]):
                Built only if there are samples of which groups have to be made.
            config ([`RLPRewardConfig`]):
                Says which method.

        Returns:
            `dict`: arguments of [`RLPRewardTrainer`].
        """
        terms = METHODS[config.method]
        arguments: dict[str, Any] = {}
        if self.policy_samples is not None:
            arguments["policy_samples"] = load_rows(self.policy_samples)
        if self.synthetic_dataset is not None:
            arguments["synthetic_dataset"] = load_rows(self.synthetic_dataset)
        if self.labeling_reward_model is not None:
            model, processing_class = load_reward_model(self.labeling_reward_model)
            arguments |= {"labeling_reward_model": model, "labeling_processing_class": processing_class}
        makes_groups = (terms.synthetic and self.synthetic_dataset is None) or (
            terms.views and config.views_from == "group"
        )
        if makes_groups and self.policy_samples is not None:
            arguments["equivalence"] = equivalence.build()
        return arguments


def _model_kwargs(arguments: ModelConfig, config: RLPRewardConfig) -> dict[str, Any]:
    """What the user said of the model, for `from_pretrained`."""
    given = {
        "dtype": arguments.dtype,
        "attn_implementation": arguments.attn_implementation,
        "revision": arguments.model_revision,
        "trust_remote_code": config.trust_remote_code or None,
        "quantization_config": get_quantization_config(arguments),
    }
    if given["quantization_config"] is not None:
        given["device_map"] = {"": process_state().device}
    own = config.model_init_kwargs or {}
    config.model_init_kwargs = None  # the trainer is given a model
    return {**{name: value for name, value in given.items() if value is not None}, **own}


def main(options: Sequence[str]) -> None:
    """
    Trains a reward model and saves it as a plain sequence classifier.

    Args:
        options (`Sequence[str]`):
            Words after `trl-rlp reward`.
    """
    data, config, model_arguments, equivalence = parse(
        "reward",
        "Trains a reward model, plain or refined on policy samples.",
        options,
        RewardArguments,
        RLPRewardConfig,
        ModelConfig,
        EquivalenceArguments,
    )
    if model_arguments.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is not set. Name the folder or Hub name of the model to start from.")
    model, processing_class = init_reward_model(
        model_arguments.model_name_or_path, config.seed, _model_kwargs(model_arguments, config)
    )
    peft_config = get_peft_config(model_arguments)
    if peft_config is not None:
        peft_config.task_type = "SEQ_CLS"  # TRL's default is the task of its policies
    evaluation = data.eval_preference_dataset
    trainer = RLPRewardTrainer(
        model=model,
        args=config,
        train_dataset=load_rows(data.preference_dataset, data.preference_split),
        eval_dataset=load_rows(evaluation, data.eval_preference_split) if evaluation else None,
        processing_class=processing_class,
        peft_config=peft_config,
        **data.refinement(equivalence, config),
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    if evaluation:
        print(trainer.evaluate())
    save_plain(trainer, config.output_dir)
    print(f"reward model: {config.output_dir}")
