"""PPO with Algorithm 1: the policy is trained, the reward model refined, and the policy trained again."""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import TrainOutput

from trl_rlp.data.groups.equivalence import Equivalence, release_after
from trl_rlp.data.groups.instruction import list_instruction_columns, read_instructions
from trl_rlp.data.preferences.holdout import hold_out
from trl_rlp.data.token_prompts import decode_prompts
from trl_rlp.data.validation import remove_format
from trl_rlp.pipeline import Refinement, build_in_loop, refine_reward_model, sample_anchors
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.reward_sources import RewardSource, list_reward_sources
from trl_rlp.rlp_ppo.rlp_checks import require_rlp_arguments
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig, drop_rlp_fields
from trl_rlp.rlp_ppo.run_settings import build_refinement_settings, build_reward_config, describe_run
from trl_rlp.stages.in_loop import InLoop, find_last_reward_model
from trl_rlp.storage.artifacts import load_reward_model, save_model
from trl_rlp.storage.precision import is_quantized
from trl_rlp.storage.run_folder import CHECKPOINTS, RunFolder
from trl_rlp.storage.whole_weights import whole_weights
from trl_rlp.trainer.checkpoints import resolve_checkpoint, train_to_end
from trl_rlp.trainer.citation import PAPER
from trl_rlp.trainer.model_card import METHOD_TAG
from trl_rlp.trainer.ppo.ppo_checks import require_config, require_fit
from trl_rlp.trainer.ppo.ppo_setup import prepare_policy
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


CHECKED = (
    "ref_model",
    "reward_model",
    "value_model",
    "reward_funcs",
    "train_dataset",
    "eval_dataset",
    "peft_config",
    "value_peft_config",
)
"""Arguments that [`require_fit`] checks."""

DECIDING = (
    "ref_model",
    "reward_model",
    "value_model",
    "reward_funcs",
    "reward_processing_class",
    "peft_config",
    "value_peft_config",
)
"""Arguments that decide what the first policy becomes, in addition to those that every run has."""

RLP_FOLDER = "rlp"
"""Folder of the stages in the trainer's output folder."""


class RLPPPOTrainer(PPOTrainer):
    r"""
    Trainer for PPO with Algorithm 1 of RLP in `train()`.

    With `args.rlp_method`, it trains the policy, samples it, and refines the reward model on the samples. Then it
    trains the policy again, from its initial weights, against the refined reward model. With `rlp_method="none"`, it
    is the same as [`PPOTrainer`].

    Args:
        args ([`RLPPPOConfig`]):
            Configuration.
        preference_dataset ([`~datasets.Dataset`], *optional*):
            Human preferences D that `reward_model` was trained on, in TRL's preference format. Required by
            `args.rlp_method`.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same. Required by SPG, by views of one group and by the anchor reward.
        processing_class, model, ref_model, reward_model, train_dataset, value_model, data_collator, eval_dataset, \
        optimizers, callbacks, peft_config, reward_funcs, reward_processing_class, value_peft_config:
            As in [`PPOTrainer`]. RLP needs `reward_model`, and a dataset instead of a stream.

    Attributes:
        refinement ([`Refinement`] or `None`): Folders of samples, synthetic preferences and refined reward model. Set
            by `train()` with `args.rlp_method`. With several rounds, those of the last one.

    Raises:
        ValueError: If models, datasets or settings do not fit together.
        RuntimeError: During training, if three steps in a row are not finite.

    Reference:
        Algorithm 1 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279).

    Example:

    ```python
    trainer = RLPPPOTrainer(
        args=RLPPPOConfig("ppo", rlp_method="spg"),
        processing_class=tokenizer,
        model=policy,
        reward_model=reward_model,
        train_dataset=prompts,
        preference_dataset=preferences,
        equivalence=NLIEquivalence(),
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "ppo", "rlp"]
    _name = "RLP-PPO"
    _paper = PAPER
    _config_class = RLPPPOConfig
    refinement: Refinement | None = None
    _equivalence: Equivalence | None = None
    _in_loop: InLoop | None = None

    def __init__(
        self,
        args: RLPPPOConfig,
        processing_class: PreTrainedTokenizerBase | None,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: PreTrainedModel | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        value_model: PreTrainedModel | None = None,
        data_collator: DataCollator | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        reward_funcs: RewardSource | list[RewardSource] | None = None,
        reward_processing_class: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        value_peft_config: PeftConfig | None = None,
        preference_dataset: Dataset | None = None,
        equivalence: Equivalence | None = None,
    ):
        require_config(args, self._config_class, type(self).__name__)
        model, processing_class = prepare_policy(model, processing_class, args)
        preference_dataset = remove_format(preference_dataset)
        require_rlp_arguments(args, model, reward_model, train_dataset, optimizers, preference_dataset, equivalence)
        # PEFT writes the name of the base model into a configuration. The user's configuration stays unchanged.
        peft_config, value_peft_config = copy.deepcopy((peft_config, value_peft_config))
        arguments = {
            "ref_model": ref_model,
            "reward_model": reward_model,
            "train_dataset": train_dataset,
            "value_model": value_model,
            "data_collator": data_collator,
            "eval_dataset": eval_dataset,
            "callbacks": callbacks,
            "peft_config": peft_config,
            "reward_funcs": reward_funcs,
            "reward_processing_class": reward_processing_class,
            "value_peft_config": value_peft_config,
        }
        self._has_rlp = args.rlp_method != "none"
        if not self._has_rlp:
            self._take_card_names(PPOTrainer)
        else:
            self._prepare_rlp(args, model, processing_class, preference_dataset, equivalence, arguments)
        super().__init__(args, processing_class, model, optimizers=optimizers, **arguments)

    def _prepare_rlp(
        self,
        args: RLPPPOConfig,
        policy: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        preference_dataset: Dataset,
        equivalence: Equivalence | None,
        arguments: dict[str, Any],
    ) -> None:
        """Opens the run folder and saves the initial policy, before the trainer changes it."""
        checked = {name: arguments[name] for name in CHECKED}
        checked["reward_funcs"] = list_reward_sources(arguments["reward_funcs"])
        require_fit(args, policy, processing_class, **checked)
        # A configuration resets accelerate's state, so it must be created before the trainer's accelerator.
        reward_config = build_reward_config(args)
        columns = list_instruction_columns(equivalence)
        prompt_dataset = decode_prompts(arguments["train_dataset"], processing_class, columns)
        read_instructions(prompt_dataset, equivalence, "train_dataset")
        deciding = {name: arguments[name] for name in DECIDING}
        settings = describe_run(
            args, policy, processing_class, prompt_dataset, preference_dataset, equivalence, deciding
        )
        self._run = RunFolder(Path(args.output_dir) / RLP_FOLDER, settings)
        self._initial_policy = self._run.stage(
            "initial_policy", save_model, model=policy, processing_class=processing_class
        )
        self._initial_dtype = policy.dtype
        self._refinement_settings = build_refinement_settings(args, self._initial_policy, reward_config)
        self._prompt_dataset, self._preference_dataset = prompt_dataset, preference_dataset
        self._equivalence = equivalence
        # The first policy starts from copies, because the trainer changes the models that it gets.
        copies = {"value_model": copy.deepcopy(arguments["value_model"])}
        self._first_arguments = {**arguments, **copies, "args": args, "processing_class": processing_class}

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains policy and critic. With `args.rlp_method`, it runs Algorithm 1.

        Steps 1 to 4 are kept in `output_dir`/rlp. A second run with the same arguments skips those that are finished.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint of the last step, or `True` for the last checkpoint in `args.output_dir`.
            trial (*optional*):
                Passed to [`~transformers.Trainer.train`].
            ignore_keys_for_eval (`list[str]`, *optional*):
                Passed to [`~transformers.Trainer.train`].

        Returns:
            `TrainOutput`: Number of steps, mean loss and metrics of step 5.

        Raises:
            RuntimeError: If three steps in a row are not finite.
            ValueError: If there is no checkpoint, or it was not written by this trainer.
        """
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if self._has_rlp and self.refinement is None:
            self._move_models("cpu")  # where they wait for step 5
            try:
                refinement = self._refine_reward_model()
                self._replace_reward_model(refinement.reward_model)
            finally:
                self._move_models(self.args.device)
            self.refinement = refinement
        # Step 5 of the last round: retrain the policy, from its initial weights, against the refined reward model.
        with release_after(self._equivalence if self._in_loop else None):
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _refine_reward_model(self) -> Refinement:
        """Runs steps 1 to 4 of Algorithm 1. With several rounds, also step 5 of all rounds but the last one."""
        # Step 1: collect D. The user passes it. A part of it is held out for the gate.
        preferences, heldout = hold_out(self._preference_dataset, self.args.rlp_heldout_share, self.args.seed)

        # Not part of Algorithm 1, and off by default: anchors for step 5.
        settings, data = self._refinement_settings, (self._prompt_dataset, self._equivalence)
        anchors = sample_anchors(self._run, settings, self._initial_policy, *data)

        # Step 2: train the reward model r on D. The user passes it.
        given = self.reward_funcs[0]
        reward_model = self._run.stage(
            "reward_model", save_model, model=given.model, processing_class=given.processing_class
        )

        # Step 3: train a policy from the initial one against r.
        policy = self._run.stage("policy", self._train_first_policy)

        # Step 4, and step 5 between two rounds. The step 5 of the last round is the training of this trainer.
        refinement = None
        for number in range(1, self.args.rlp_rounds + 1):
            run = self._run.in_round(number)
            if number == self.args.rlp_rounds:
                self._first_arguments = None  # releases the models that only the stages train with
            self._move_models("cpu")  # the last training has moved the models that it shares with this trainer
            refinement = refine_reward_model(
                run,
                settings,
                policy=policy,
                reward_model=reward_model,
                prompt_dataset=self._prompt_dataset,
                equivalence=self._equivalence,
                preference_dataset=preferences,
                heldout_preferences=heldout,
                earlier_preferences=refinement.all_preferences if refinement else (),
            )
            synthetic, reward_model = refinement.all_preferences, refinement.reward_model
            self._in_loop = build_in_loop(settings, anchors, synthetic, self._equivalence, preferences, heldout)
            if number < self.args.rlp_rounds:
                policy = run.stage("retrained_policy", self._train_policy_again, reward_model=reward_model)
                reward_model = find_last_reward_model(policy, reward_model)
        return refinement

    def _move_models(self, device: torch.device | str) -> None:
        """Moves the models of this trainer, except those that are sharded, quantized or spread over devices."""
        models = [function.model for function in self.reward_funcs if isinstance(function, RewardFunction)]
        if self.accelerator.distributed_type != DistributedType.FSDP:
            models += [self.model, self._critic_optimizer.critic]
            models += [] if self.ref_model is None else [self.ref_model]
        for model in models:
            parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
            if not any(hasattr(part, "hf_device_map") or is_quantized(part) for part in parts):
                model.to(device)

    def _train_first_policy(self, folder: Path) -> dict[str, float]:
        """Step 3: trains a policy from the initial one, against the first reward model."""
        return train_to_end(self._build_stage_trainer(folder), folder)

    def _train_policy_again(self, folder: Path, reward_model: Path) -> dict[str, float]:
        """Step 5 before another round: trains a policy from the initial one, against a refined reward model."""
        first = self._first_arguments
        reward, others = self._load_reward_function(reward_model), list_reward_sources(first["reward_funcs"])
        weights = first["args"].reward_weights or [1.0] * (1 + len(others))
        (reward, *anchor_rewards), callbacks = [reward], []
        if self._in_loop is not None:
            (reward, *anchor_rewards), callbacks = self._in_loop.extend_rewards(
                reward, first["args"].generation_batch_size, folder / CHECKPOINTS
            )
            weights = self._in_loop.extend_weights(weights)
        tokenizers = first["reward_processing_class"]
        tokenizers = tokenizers[1:] if isinstance(tokenizers, (list, tuple)) else [None] * len(others)
        trainer = self._build_stage_trainer(
            folder,
            weights,
            reward_model=None,
            reward_funcs=[reward, *others, *anchor_rewards],
            reward_processing_class=[None, *tokenizers, *(None for _ in anchor_rewards)],
            callbacks=[*(first["callbacks"] or []), *callbacks],
        )
        with release_after(self._equivalence):
            metrics = train_to_end(trainer, folder, [METHOD_TAG])
        for callback in callbacks:
            self._in_loop.save_reward_model(folder, trainer, callback)
        return metrics

    def _build_stage_trainer(
        self, folder: Path, reward_weights: list[float] | None = None, **changes: Any
    ) -> PPOTrainer:
        """Builds the trainer of a stage's policy, which starts from the initial policy."""
        args = drop_rlp_fields(self._first_arguments["args"])
        args.output_dir, args.push_to_hub = str(folder / CHECKPOINTS), False
        args.reward_weights = reward_weights or args.reward_weights
        with whole_weights():
            policy = AutoModelForCausalLM.from_pretrained(
                self._initial_policy, dtype=self._initial_dtype, trust_remote_code=args.trust_remote_code
            )
        copied = ["peft_config", "value_peft_config", *(["value_model"] if self.args.rlp_rounds > 1 else [])]
        copies = {name: copy.deepcopy(self._first_arguments[name]) for name in copied}
        arguments = {**self._first_arguments, **copies, "args": args, **changes}
        return PPOTrainer(model=policy, **arguments)

    def _load_reward_function(self, folder: Path) -> RewardFunction:
        """Loads a refined reward model. It scores with the maximum length that it was trained and compared with."""
        settings = self._refinement_settings
        model, processing_class = load_reward_model(folder, **settings.model_options)
        (function,) = self._build_reward_functions(
            model, [], processing_class, self._given_processing_class, self.args
        )
        function.max_length = settings.config.max_length
        return function

    def _replace_reward_model(self, folder: Path) -> None:
        """Replaces the reward model, and the critic, which may start from it. It has not been trained yet."""
        self.reward_funcs[0] = self._load_reward_function(folder)
        self.reward_model = self.reward_funcs[0].model
        if self._in_loop is not None:
            self._add_in_loop(self._in_loop)
        self._are_rewards_standardized = False
        set_seed(self.args.seed, device_specific=True)  # as before the first critic, whose adapter may be random
        if self._given_value_model is not None and self.accelerator.distributed_type == DistributedType.FSDP:
            self._follow_refinements([0])  # FSDP cannot shard the user's value model again
        else:
            self._add_critic()

    def _add_in_loop(self, in_loop: InLoop) -> None:
        """Adds the anchor reward, and the callback that refines the reward model, to this trainer."""
        (self.reward_funcs[0], *anchor_rewards), callbacks = in_loop.extend_rewards(
            self.reward_funcs[0], self.args.generation_batch_size, Path(self.args.output_dir)
        )
        for function in anchor_rewards:
            self.reward_funcs.append(function)
            self.reward_func_names.append(function.__name__)
            self.reward_processing_classes.append(None)
        self.reward_weights = torch.tensor(in_loop.extend_weights(self.reward_weights.tolist()))
        for callback in callbacks:
            self.add_callback(callback)
